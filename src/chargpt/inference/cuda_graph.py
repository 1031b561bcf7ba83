"""Sampling with one CUDA graph a token: the step and the draw are launched together, not kernel by kernel.

Nothing here but `capture` needs a GPU. The tests run the rest on a CPU, with a recorder of their own in its place.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Integer
from torch import Tensor

from chargpt.errors import UserError
from chargpt.inference.context import Window
from chargpt.inference.decode import DecodeStep
from chargpt.inference.sampling import sample_token
from chargpt.inference.static_decode import StaticDecodeStep
from chargpt.model.language_model import LanguageModel

WARM_UP_RUNS = 3  # runs before the capture: libraries choose kernels and allocate workspaces in the first ones

Run = Callable[[], None]


def check(model: LanguageModel, quantize: str | None = None) -> None:
    """Raises `UserError` for a model that cannot be sampled with CUDA graphs."""
    if model.device.type != "cuda":
        raise UserError(
            f"cuda_graph=true is for a GPU, and the model is on {model.device}: "
            f"add device=cuda, or leave cuda_graph out"
        )
    if quantize is not None:
        raise UserError(f"cuda_graph=true does not go with quantize={quantize}, which is for the CPU: leave one out")
    if not DecodeStep.supports(model):
        raise UserError("cuda_graph=true is for a Transformer of the bench's own parts: leave it out for this model")


def capture(run: Run, reset: Run, device: torch.device) -> Run:
    """Records the kernels of `run` in a CUDA graph; gives what launches them again, on the same memory.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

    Args:
        run: works on static memory, and never waits for the GPU.
        reset: puts that memory in a state that `run` can start from; called before each warm-up run.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                reset()
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            run()
    return graph.replay


class GraphSampler:
    """Continues B texts by replaying a recorded step.

    Random numbers are drawn on the device, one generator for each sample, for a whole block each time that the
    window is prefilled, and the recorded step reads the row of its position. A generator inside the graph
    (`CUDAGraph.register_generator_state`) would cost two more kernel launches a sample and token: each replay
    first writes the generator's seed and offset to the device.

    Args:
        model: in eval mode; one that `DecodeStep.supports`.
        seeds: of the B samples.
        temperature, top_k, top_p, window: as in `chargpt.inference.generate`.
        record: gives a function that repeats what its first argument does, for example `capture`.
    """

    def __init__(
        self,
        model: LanguageModel,
        seeds: list[int],
        temperature: int | float,
        top_k: int | None,
        top_p: int | float | None,
        window: str,
        record: Callable[[Run, Run, torch.device], Run] = capture,
    ):
        B, device = len(seeds), model.device
        self._window = Window(model.block_size, window, B, "cpu")
        self._step = StaticDecodeStep(model, B)
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds] if temperature else []
        rows = model.block_size if temperature else 0
        self._noise_BTV = torch.zeros(B, rows, model.vocab_size, device=device)
        self._draw = partial(sample_token, noise=self._noise_BV, temperature=temperature, top_k=top_k, top_p=top_p)
        self._replay = record(self._step_and_draw, self._step.position_1.zero_, device)

    @torch.no_grad()
    def sample(self, tokens_BT: Integer[Tensor, "B T"], max_new_tokens: int) -> Iterator[Integer[Tensor, " B"]]:
        """Yields the next token of each text, on the CPU, `max_new_tokens` times.

        Args:
            tokens_BT: on the CPU; T >= 1.
        """
        for i in range(max_new_tokens):
            if self._window.append(tokens_BT) or i == 0:
                self._prefill_and_draw()
            else:
                self._replay()
            next_B = self._step.tokens_B1[:, 0].to("cpu", copy=True)
            yield next_B
            tokens_BT = next_B[:, None]

    def _prefill_and_draw(self) -> None:
        logits_BV = self._step.prefill(self._window.tokens_BT.to(self._step.tokens_B1.device))
        for noise_TV, generator in zip(self._noise_BTV, self._generators, strict=False):
            noise_TV.exponential_(generator=generator).log_()
        self._feed_back(self._draw(logits_BV.float()))

    def _step_and_draw(self) -> None:
        self._feed_back(self._draw(self._step().float()))

    def _feed_back(self, next_B: Integer[Tensor, " B"]) -> None:
        self._step.tokens_B1.copy_(next_B[:, None])

    def _noise_BV(self) -> Tensor:
        """The row of the newest token in the KV cache."""
        return self._noise_BTV.index_select(1, self._step.position_1 - 1)[:, 0]
