"""Samples with one CUDA graph per token: the decoding step and the sampling are launched together.

Only `capture` needs a GPU. The tests replace it and run the rest on a CPU.
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

WARM_UP_RUNS = 3  # runs before the capture, in which libraries choose kernels and allocate workspaces

Func = Callable[[], object]


def check(model: LanguageModel, quantize: str | None = None) -> None:
    """Raises `UserError` if the model cannot be sampled with CUDA graphs."""
    if model.device.type != "cuda":
        raise UserError(
            f"cuda_graph=true: CUDA graphs need a GPU, but the model is on {model.device}. "
            f"Add device=cuda, or remove cuda_graph"
        )
    if quantize is not None:
        raise UserError(f"cuda_graph=true: it cannot be combined with quantize={quantize}. Remove one of them")
    if not DecodeStep.supports(model):
        raise UserError(
            "cuda_graph=true: it supports only Transformers made of chargpt's own components. Remove it for this model"
        )


def capture(func: Func, reset: Func, device: torch.device) -> Func:
    """Captures the kernels of `func` in a CUDA graph and returns a function that replays them on the same memory.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

    Args:
        func: must use only static memory, and must not synchronize with the GPU.
        reset: puts that memory into a valid initial state for `func`; called before each warm-up run.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                reset()
                func()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            func()
    return graph.replay


class GraphSampler:
    """Continues B texts by replaying a recorded decoding step.

    Each sample has a generator on the device. At each prefill it draws the random numbers for a full block, and the
    recorded step reads the row of its position. A generator inside the graph
    (`CUDAGraph.register_generator_state`) would cost two more kernel launches per sample and token, since each
    replay first writes the seed and offset of the generator to the device.

    Args:
        model: in eval mode; one that `DecodeStep.supports`.
        seeds: one per sample.
        temperature, top_k, top_p, window: as in `chargpt.inference.generate`.
        record: returns a function that repeats the operations of its first argument, for example `capture`.
    """

    def __init__(
        self,
        model: LanguageModel,
        seeds: list[int],
        temperature: int | float,
        top_k: int | None,
        top_p: int | float | None,
        window: str,
        record: Callable[[Func, Func, torch.device], Func] = capture,
    ):
        B, device = len(seeds), model.device
        self._window = Window(model.block_size, window, B, "cpu")
        self._step = StaticDecodeStep(model, B)
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds] if temperature else []
        rows = model.block_size if temperature else 0
        self._noise_BTV = torch.zeros(B, rows, model.vocab_size, device=device)
        self._sample = partial(sample_token, noise=self._noise_BV, temperature=temperature, top_k=top_k, top_p=top_p)
        self._replay = record(self._step_and_sample, self._step.position_1.zero_, device)

    @torch.no_grad()
    def sample(self, tokens_BT: Integer[Tensor, "B T"], max_new_tokens: int) -> Iterator[Integer[Tensor, " B"]]:
        """Yields the next token of each text, on the CPU, `max_new_tokens` times.

        Args:
            tokens_BT: on the CPU; T >= 1.
        """
        for i in range(max_new_tokens):
            if self._window.append(tokens_BT) or i == 0:
                self._prefill_and_sample()
            else:
                self._replay()
            next_B = self._step.tokens_B1[:, 0].to("cpu", copy=True)
            yield next_B
            tokens_BT = next_B[:, None]

    def _prefill_and_sample(self) -> None:
        logits_BV = self._step.prefill(self._window.tokens_BT.to(self._step.tokens_B1.device))
        for noise_TV, generator in zip(self._noise_BTV, self._generators, strict=False):
            noise_TV.exponential_(generator=generator).log_()
        self._sample_into_input(logits_BV)

    def _step_and_sample(self) -> None:
        self._sample_into_input(self._step())

    def _sample_into_input(self, logits_BV: Tensor) -> None:
        self._step.tokens_B1.copy_(self._sample(logits_BV.float())[:, None])

    def _noise_BV(self) -> Tensor:
        """Returns the noise for the position of the newest token in the KV cache."""
        return self._noise_BTV.index_select(1, self._step.position_1 - 1)[:, 0]
