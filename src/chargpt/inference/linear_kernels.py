"""Linear layers for a few rows on a CPU: several implementations, the fastest of which is chosen by measurement.

For few rows, the time is that of reading the weights, and torch's implementations differ by a factor of two to three
in it (experiments/speed).
"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chargpt.utils.measurements import fastest, measured

Rows = Float[Tensor, "N C"]
Kernel = Callable[[Rows], Rows]
LinearFactory = Callable[[nn.Linear], Kernel]

PARTS = 4  # of the weights in `_split`
MIN_WEIGHTS = 1 << 18  # of a model; with fewer, the calls take longer than the products
MAX_WEIGHTS = 1 << 23  # that are measured; more exceed the processor's caches as much
MAX_ROWS = 64  # that are measured; more are computed by the kernel that is fastest for these


def linear_factory(model: nn.Module, rows: int) -> LinearFactory:
    """Builds functions that compute linear layers of a model for this number of rows.

    The result of such a function is valid until its next call. The weights are copied, except by the kernels "stored"
    and "split".
    """
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    on_cpu = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    if on_cpu and sum(weight.numel() for weight in weights) >= MIN_WEIGHTS:
        kernel = KERNELS[fastest_kernel(weights, rows)]
    else:
        kernel = _stored if on_cpu or rows == 1 else _transposed
    return lambda layer: kernel(layer.weight, layer.bias, rows)


def fastest_kernel(weights: Sequence[Float[Tensor, "_ _"]], rows: int) -> str:
    """The name of the fastest kernel for layers with these weights; measured once, in half a second at most."""
    rows = min(rows, MAX_ROWS)
    total, chosen = 0, []
    for weight in weights:
        total += weight.numel()
        if chosen and total > MAX_WEIGHTS:
            break
        chosen.append(weight)
    shapes = Counter("x".join(map(str, weight.shape)) for weight in chosen)
    layers = " ".join(f"{count}x{shape}" for shape, count in shapes.items())
    name = f"linear layers {layers}, {rows} rows, {torch.get_num_threads()} threads"
    available = [kernel for kernel in KERNELS if _is_available(kernel)]
    return measured(name, lambda: _measure(chosen, rows, available), lambda known: known in available)


def _measure(weights: Sequence[Tensor], rows: int, names: Sequence[str]) -> str:
    inputs = [weight.new_ones(rows, weight.shape[1]) for weight in weights]

    def all_layers(name: str) -> Callable[[], object]:
        kernels = [KERNELS[name](weight, None, rows) for weight in weights]
        return lambda: [kernel(x_NC) for kernel, x_NC in zip(kernels, inputs, strict=True)]

    with torch.inference_mode():
        return fastest({name: all_layers(name) for name in names})


def _stored(weight_OI: Tensor, bias: Tensor | None, rows: int) -> Kernel:
    return _product(weight_OI.t(), bias, rows)


def _transposed(weight_OI: Tensor, bias: Tensor | None, rows: int) -> Kernel:
    return _product(weight_OI.t().contiguous(), bias, rows)


def _product(weight_IO: Tensor, bias: Tensor | None, rows: int) -> Kernel:
    out_NO = weight_IO.new_empty(rows, weight_IO.shape[1])
    if bias is None:
        return lambda x_NI: torch.mm(x_NI, weight_IO, out=out_NO)
    return lambda x_NI: torch.addmm(bias, x_NI, weight_IO, out=out_NO)


def _split(weight_OI: Tensor, bias: Tensor | None, rows: int) -> Kernel:
    """A batch of products by parts of the weights, which the threads share: MKL uses one thread for a single row."""
    fan_out, fan_in = weight_OI.shape
    if fan_out % PARTS:
        return _stored(weight_OI, bias, rows)
    parts_PIJ = weight_OI.view(PARTS, fan_out // PARTS, fan_in).mT
    out_NO = weight_OI.new_empty(rows, fan_out)
    out_PNJ = out_NO.view(rows, PARTS, fan_out // PARTS).transpose(0, 1)

    def multiply(x_NI: Tensor) -> Tensor:
        product_PNJ = torch.bmm(x_NI.expand(PARTS, rows, fan_in), parts_PIJ)
        if bias is None:
            out_PNJ.copy_(product_PNJ)
        else:
            torch.add(product_PNJ, bias.view(PARTS, 1, -1), out=out_PNJ)
        return out_NO

    return multiply


def _mkl(weight_OI: Tensor, bias: Tensor | None, rows: int) -> Kernel:
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight_OI, rows)
    linear = torch.ops.mkl._mkl_linear.default
    return lambda x_NI: linear(x_NI, packed, weight_OI, bias, rows)


def _onednn(weight_OI: Tensor, bias: Tensor | None, rows: int) -> Kernel:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, rows)
    linear = torch.ops.mkldnn._linear_pointwise.default
    return lambda x_NI: linear(x_NI, packed, bias, "none", [], "")


def _is_available(name: str) -> bool:
    if name == "mkl":
        return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")
    if name == "onednn":
        return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return True


# Packed weights have no public functions in torch: torch.compile replaces linear layers by these operators.
KERNELS: dict[str, Callable[[Tensor, Tensor | None, int], Kernel]] = {
    "stored": _stored,
    "transposed": _transposed,
    "split": _split,
    "mkl": _mkl,
    "onednn": _onednn,
}
