"""Tests of SOAP: equality with Adam in the eigenbasis, resuming, precision, and the batched variant."""

import copy
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from chargpt.errors import UserError
from chargpt.model.language_model import LanguageModel
from chargpt.optim.soap import BatchedSOAP, full_float32, refresh, soap
from tests.conftest import REPO
from tests.training import run_artifacts


class OneMatrix(LanguageModel):
    """A model of one matrix and one vector."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(torch.zeros(3))

    def matrix_parameters(self) -> list[tuple[nn.Parameter, int]]:
        return [(self.weight, 1)]


def gradients(steps: int, shape: tuple[int, ...] = (6, 4)) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.5, 4, shape[0])[:, None] * torch.linspace(1, 3, shape[1])
    return [scales * torch.randn(shape, generator=draw) for _ in range(steps)]


def train(model: OneMatrix, optimizer: torch.optim.Optimizer, steps: list[Tensor]) -> Tensor:
    for gradient in steps:
        model.weight.grad, model.bias.grad = gradient.clone(), torch.ones(3)
        optimizer.step()
    return model.weight.detach()


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(size))).Q


def test_training_is_equivariant_under_rotations():
    """Training with Adam is not: it depends on the coordinates."""
    weight, u, v = torch.randn(5, 5), orthogonal(5), orthogonal(5).flip(1)
    original, rotated = OneMatrix(weight), OneMatrix(u @ weight @ v)
    settings = dict(lr=0.01, frequency=3, weight_decay=0.1)
    steps = gradients(12, (5, 5))  # of full rank: otherwise the eigenbasis would not be unique
    actual = train(rotated, soap(rotated, **settings), [u @ g @ v for g in steps])
    expected = u @ train(original, soap(original, **settings), steps) @ v
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-3)
    assert (actual - u @ weight @ v).abs().max() > 0.05


def test_with_diagonal_gradients_soap_equals_adam_from_the_second_gradient_on():
    """Diagonal gradients keep the averages diagonal, so the eigenbasis is that of the coordinates."""
    steps = [torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]) * (1 + 0.1 * k)) for k in range(6)]
    weight = torch.randn(4, 4)
    model, plain = OneMatrix(weight), nn.Parameter(weight.clone())
    adam = torch.optim.Adam([plain], lr=0.01, betas=(0.9, 0.8), eps=1e-8)
    for gradient in steps[1:]:
        plain.grad = gradient
        adam.step()
    actual = train(model, soap(model, lr=0.01, betas=(0.9, 0.8), weight_decay=0.0, frequency=2), steps)
    torch.testing.assert_close(actual, plain.detach(), atol=1e-5, rtol=1e-4)


def test_refresh_converges_to_the_eigenvectors_in_descending_order():
    basis = orthogonal(5)
    average = basis @ torch.diag(torch.tensor([1.0, 3.0, 9.0, 27.0, 81.0])) @ basis.mT
    refreshed = orthogonal(5) @ basis  # another basis
    for _ in range(30):
        refreshed, order = refresh(average, refreshed)
    in_basis = refreshed.mT @ average @ refreshed
    torch.testing.assert_close(in_basis.diagonal(), torch.tensor([81.0, 27.0, 9.0, 3.0, 1.0]), rtol=1e-4, atol=1e-3)
    assert order.tolist() == [0, 1, 2, 3, 4]


def test_soap_resumes_from_its_state_bit_for_bit():
    weight, steps, settings = torch.randn(6, 4), gradients(9), dict(lr=0.01, frequency=2)
    uninterrupted, resumed = OneMatrix(weight), OneMatrix(weight)
    expected = train(uninterrupted, soap(uninterrupted, **settings), steps)
    first = soap(resumed, **settings)
    train(resumed, first, steps[:4])
    second = soap(resumed, **settings)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert train(resumed, second, steps[4:]).equal(expected)
    assert resumed.bias.equal(uninterrupted.bias)


@pytest.mark.parametrize(
    "invalid", [dict(frequency=0), dict(betas=(1.0, 0.9)), dict(shampoo_beta=2), dict(eps=0), dict(lr=-1)], ids=str
)
def test_invalid_settings_are_a_user_error(invalid):
    with pytest.raises(UserError, match=next(iter(invalid))):
        soap(OneMatrix(torch.zeros(2, 2)), **{"lr": 0.01, **invalid})


def test_initial_zero_gradients_have_no_effect():
    weight, steps = torch.randn(6, 4), gradients(5)
    delayed, immediate = OneMatrix(weight), OneMatrix(weight)
    actual = train(delayed, soap(delayed, lr=0.01), [torch.zeros(6, 4)] * 3 + steps)
    assert actual.equal(train(immediate, soap(immediate, lr=0.01), steps))


# Precision


class Precisions(TorchFunctionMode):
    """Records the precision of float32 products during each product and decomposition."""

    def __init__(self):
        super().__init__()
        self.recorded: dict[str, set[str]] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        if name in ("matmul", "__matmul__", "linalg_eigh", "linalg_qr"):
            self.recorded.setdefault(name, set()).add(torch.get_float32_matmul_precision())
        return function(*args, **kwargs or {})


@pytest.fixture
def tf32():
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(previous)


@pytest.mark.parametrize("batched", [False, True])
def test_products_are_in_full_float32_independently_of_the_runs_precision(tf32, batched):
    model = OneMatrix(torch.randn(6, 4))
    optimizer = soap(model, lr=0.01, frequency=2, batched=batched)
    with Precisions() as precisions:
        train(model, optimizer, gradients(4))
    assert len(precisions.recorded) == 3
    assert all(recorded == {"highest"} for recorded in precisions.recorded.values())
    assert torch.get_float32_matmul_precision() == "high"


def test_the_precision_is_restored_after_an_exception(tf32):
    with pytest.raises(KeyError), full_float32():
        assert torch.get_float32_matmul_precision() == "highest"
        raise KeyError
    assert torch.get_float32_matmul_precision() == "high"


class Calls(TorchFunctionMode):
    """Records the names of all torch functions called."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("batched", [False, True])
def test_only_the_first_step_synchronizes_with_the_device(batched):
    model = OneMatrix(torch.randn(6, 4))
    optimizer = soap(model, lr=0.01, frequency=2, batched=batched)
    synchronizing = {"__bool__", "tolist", "item", "__float__", "cpu", "nonzero"}
    with Calls() as first:
        train(model, optimizer, gradients(1))
    with Calls() as later:
        train(model, optimizer, gradients(4))
    assert first.names & synchronizing
    assert not later.names & synchronizing
    assert "linalg_qr" in later.names


class OperatorDevices(TorchDispatchMode):
    """Records the device of the first argument of each operator."""

    def __init__(self):
        super().__init__()
        self.devices: dict[str, str] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if args and isinstance(args[0], Tensor):
            self.devices[function.overloadpacket.__name__] = args[0].device.type
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("batch", [(), (3,)])
def test_matrices_on_an_apple_gpu_are_decomposed_on_the_cpu(batch):
    """torch has no `eigh` for Apple GPUs. The tensors here have a device, but no values."""
    optimizer, state = soap(OneMatrix(torch.randn(6, 4)), lr=0.01), {}
    with FakeTensorMode(), torch.no_grad(), OperatorDevices() as operators:
        optimizer._start(state, torch.empty(6, 4, device="mps"))
        basis, order = refresh(torch.empty(*batch, 6, 6, device="mps"), torch.empty(*batch, 6, 6, device="mps"))
    assert {operators.devices[name] for name in ("_linalg_eigh", "linalg_qr")} == {"cpu"}
    assert {operators.devices[name] for name in ("mm", "bmm") if name in operators.devices} == {"mps"}
    tensors = [basis, order, *(value for value in state.values() if isinstance(value, Tensor))]
    assert {tensor.device.type for tensor in tensors} == {"mps"}
    assert (basis.shape, order.shape) == ((*batch, 6, 6), (*batch, 6))


# Batched


class SeveralMatrices(LanguageModel):
    """Matrices of three shapes, several of the same shape, and one whose gradient is zero in the first five steps."""

    SHAPES = ((6, 4), (6, 4), (4, 4), (3, 7), (6, 4), (4, 4))
    LATE = 4

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.matrices = nn.ParameterList(torch.randn(shape, generator=draw) for shape in self.SHAPES)
        self.bias = nn.Parameter(torch.zeros(3))

    def matrix_parameters(self) -> list[tuple[nn.Parameter, int]]:
        return [(matrix, 1) for matrix in self.matrices]

    def run_steps(self, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            draw = torch.Generator().manual_seed(step)
            for k, matrix in enumerate(self.matrices):
                scales = torch.linspace(1, 2, matrix.shape[0])[:, None] * torch.linspace(1, 2, matrix.shape[1])
                matrix.grad = scales * torch.randn(matrix.shape, generator=draw)
                if k == self.LATE and step < 5:
                    matrix.grad.zero_()
            self.bias.grad = torch.ones(3)
            optimizer.step()


SETTINGS = dict(lr=0.01, frequency=4, weight_decay=0.1)


@pytest.fixture(scope="module")
def unbatched() -> tuple[SeveralMatrices, torch.optim.Optimizer]:
    """The model after 25 steps of SOAP without batches, and the optimizer."""
    model = SeveralMatrices()
    optimizer = soap(model, **SETTINGS)
    model.run_steps(optimizer, range(25))
    return model, optimizer


def assert_same_training(
    model: SeveralMatrices,
    optimizer: torch.optim.Optimizer,
    expected: tuple[SeveralMatrices, torch.optim.Optimizer],
):
    tolerance = dict(atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.state_dict(), expected[0].state_dict(), **tolerance)
    actual_state, expected_state = optimizer.state_dict(), expected[1].state_dict()
    assert actual_state["param_groups"] == expected_state["param_groups"]
    actual, expected = actual_state["state"], expected_state["state"]
    assert [list(state) for state in actual.values()] == [list(state) for state in expected.values()]
    for name in ("taken", "momentum", "variance", "left", "right"):  # not the bases: their signs may differ
        for number in range(len(SeveralMatrices.SHAPES)):
            torch.testing.assert_close(actual[number][name], expected[number][name], **tolerance)


def test_batched_soap_takes_the_same_steps(unbatched):
    model = SeveralMatrices()
    optimizer = soap(model, **SETTINGS, batched=True)
    assert isinstance(optimizer, BatchedSOAP)
    model.run_steps(optimizer, range(25))
    assert_same_training(model, optimizer, unbatched)
    taken = [optimizer.state[matrix]["taken"] for matrix in model.matrices]
    assert taken == [24, 24, 24, 24, 19, 24]


@pytest.mark.parametrize("order", [(False, True, False), (True, False, True), (True, True, True)], ids=str)
def test_each_variant_resumes_from_the_others_state(unbatched, order, tmp_path: Path):
    model, file = SeveralMatrices(), tmp_path / "state.pt"
    for batched, steps in zip(order, (range(7), range(7, 14), range(14, 25)), strict=True):
        optimizer = soap(model, **SETTINGS, batched=batched)
        if steps.start:
            optimizer.load_state_dict(torch.load(file))
        model.run_steps(optimizer, steps)
        torch.save(optimizer.state_dict(), file)
    assert_same_training(model, optimizer, unbatched)


def test_batched_soap_resumes_from_its_state_bit_for_bit(tmp_path: Path):
    uninterrupted, resumed = SeveralMatrices(), SeveralMatrices()
    uninterrupted.run_steps(soap(uninterrupted, **SETTINGS, batched=True), range(12))
    first, second = (soap(resumed, **SETTINGS, batched=True) for _ in range(2))
    resumed.run_steps(first, range(6))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
    resumed.run_steps(second, range(6, 12))
    assert all(p.equal(q) for p, q in zip(uninterrupted.parameters(), resumed.parameters(), strict=True))


def test_the_state_tensors_are_not_views_of_a_batch():
    model = SeveralMatrices()
    optimizer = soap(model, **SETTINGS, batched=True)
    model.run_steps(optimizer, range(9))
    tensors = [t for matrix in model.matrices for t in optimizer.state[matrix].values() if isinstance(t, Tensor)]
    assert len(tensors) == 6 * len(SeveralMatrices.SHAPES)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)


def test_a_copy_of_batched_soap_is_batched():
    model = SeveralMatrices()
    optimizer = soap(model, **SETTINGS, batched=True)
    model.run_steps(optimizer, range(3))
    assert isinstance(copy.deepcopy(optimizer), BatchedSOAP)


@pytest.mark.parametrize(("overrides", "name"), [([], "SOAP"), (["optimizer.batched=true"], "BatchedSOAP")], ids=str)
def test_the_config_selects_the_variant(overrides, name):
    with initialize_config_dir(str(REPO / "conf"), version_base=None):
        config = compose("train", ["optimizer=soap", *overrides])
    assert type(instantiate(config.optimizer)(SeveralMatrices())).__name__ == name


@pytest.mark.parametrize("model", ["gpt_nano", "gpt_modern"])
def test_batched_soap_trains_from_the_command_line(run_cli, tiny, tmp_path: Path, model):
    """The projections of gpt_modern are initialized to 0, so some matrices start one step later than others."""
    overrides = [*tiny, f"model={model}", "optimizer=soap", "hydra.run.dir=run"]
    outcome = run_cli("train", *overrides, "optimizer.batched=true", "trainer.max_steps=20")
    assert outcome.code == 0, outcome.err
    losses = [float(row["val_loss"]) for row in run_artifacts.history(tmp_path / "run") if row["val_loss"]]
    assert losses[-1] < losses[0]
