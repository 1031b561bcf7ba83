"""Speculative sampling: an n-gram model drafts tokens, and the language model verifies several in one pass.

In Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", and Chen et al. 2023,
"Accelerating Large Language Model Decoding with Speculative Sampling", both models sample independently, and a rejected
draft is corrected. Here both use the same Gumbel noise for a token (Daliri et al. 2025, "Coupling without Communication
and Drafter-Invariant Speculative Decoding"): a draft is accepted if it is the token that the language model itself
samples with this noise. So the text is that of sampling without drafts, whatever the n-gram model is.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Integer
from numpy.typing import NDArray
from torch import Tensor

from chargpt.inference.ngram import NGramModel
from chargpt.inference.sampling import adjust_logits, sample_token
from chargpt.inference.verify_step import VerifyStep
from chargpt.model.language_model import LanguageModel

NUM_DRAFTS = 5  # tokens per pass
MAX_TEXTS = 4  # more are faster without drafts, with most models (experiments/speed)
MAX_CONTEXTS = 20_000  # whose logits are kept


class SpeculativeSampler:
    """Samples continuations of B texts.

    Args:
        model: in eval mode; one that `chargpt.inference.verify_step.supports` accepts.
        ngram: drafts the tokens; of the same vocabulary.
        prompt_T: at least one token.
        seeds: of each of the B texts.
        temperature, top_k, top_p, quantize: as in `chargpt.inference.generate`.
    """

    def __init__(
        self,
        model: LanguageModel,
        ngram: NGramModel,
        prompt_T: Integer[Tensor, " T"],
        seeds: list[int],
        temperature: int | float,
        top_k: int | None,
        top_p: int | float | None,
        quantize: str | None = None,
    ):
        self._block_size, self._settings = model.block_size, (temperature, top_k, top_p)
        self._greedy = temperature == 0
        self._drafter = Drafter(ngram, temperature, top_k, top_p)
        self._step = VerifyStep.create(model, len(seeds), NUM_DRAFTS + 1, quantize)
        prompt = prompt_T.tolist()[-model.block_size :]
        self._windows = [prompt[:] for _ in seeds]  # the last token of each is not in the KV cache yet
        self._noise = [Noise(model.vocab_size, torch.Generator().manual_seed(seed)) for seed in seeds]
        for row in range(len(seeds)):
            self._step.fill(row, torch.tensor(prompt[:-1], dtype=torch.long))

    def sample(self, max_new_tokens: int) -> Iterator[Integer[Tensor, " B"]]:
        """Yields the next token of each text, `max_new_tokens` times."""
        ready: list[deque[int]] = [deque() for _ in self._windows]
        for _ in range(max_new_tokens):
            while not all(ready):
                for queue, tokens in zip(ready, self._extend(), strict=True):
                    queue.extend(tokens)
            yield torch.tensor([queue.popleft() for queue in ready])

    @torch.inference_mode()
    def _extend(self) -> list[list[int]]:
        """Samples at least one more token of each text."""
        noise = [[] if self._greedy else source.ahead(NUM_DRAFTS + 1) for source in self._noise]
        drafts = [
            self._drafter.draft(window, of_text, NUM_DRAFTS)
            for window, of_text in zip(self._windows, noise, strict=True)
        ]
        tokens_BR = torch.tensor([[window[-1], *draft] for window, draft in zip(self._windows, drafts, strict=True)])
        starts = [len(window) - 1 for window in self._windows]
        logits_BRV = self._step(tokens_BR, starts, [window[:-1] for window in self._windows]).float()

        def noise_NV() -> Float[Tensor, "N V"]:
            return torch.stack([draw for of_text in noise for draw in of_text])

        sampled_N = sample_token(logits_BRV.flatten(0, 1), noise_NV, *self._settings)
        result = []
        for row, (draft, sampled) in enumerate(zip(drafts, sampled_N.view(tokens_BR.shape).tolist(), strict=True)):
            room = self._block_size - len(self._windows[row])  # later drafts are beyond the block
            accepted = 0
            while accepted < min(room, NUM_DRAFTS) and draft[accepted] == sampled[accepted]:
                accepted += 1
            new = sampled[: accepted + 1]
            self._append(row, new)
            result.append(new)
        return result

    def _append(self, row: int, tokens: list[int]) -> None:
        window = self._windows[row]
        window += tokens
        if not self._greedy:
            self._noise[row].advance(len(tokens))
        if len(window) > self._block_size:  # as `chargpt.inference.context.Window` with the kind "half"
            del window[: -max(1, self._block_size // 2)]
            self._step.fill(row, torch.tensor(window[:-1], dtype=torch.long))


class Noise:
    """The noise of the tokens of one text: the k-th draw is for the k-th token, however often it is read."""

    def __init__(self, vocab_size: int, generator: torch.Generator):
        self._vocab_size, self._generator = vocab_size, generator
        self._ahead: deque[Float[Tensor, " V"]] = deque()

    def ahead(self, count: int) -> list[Float[Tensor, " V"]]:
        """The noise of the next `count` tokens."""
        while len(self._ahead) < count:
            self._ahead.append(torch.empty(self._vocab_size).exponential_(generator=self._generator).log_())
        return list(self._ahead)[:count]

    def advance(self, count: int) -> None:
        """Proceeds by `count` tokens."""
        for _ in range(count):
            self._ahead.popleft()


class Drafter:
    """Samples drafts from an n-gram model, with the settings of the language model."""

    def __init__(self, ngram: NGramModel, temperature: int | float, top_k: int | None, top_p: int | float | None):
        self._ngram, self._settings = ngram, (temperature, top_k, top_p)
        self._adjusts = temperature > 0 and self._settings != (1, None, None)
        self._logits: dict[tuple[int, ...], Float[NDArray, " V"]] = {}

    def draft(self, context: list[int], noise: list[Float[Tensor, " V"]], count: int) -> list[int]:
        """Drafts `count` tokens that follow a context.

        Args:
            noise: that of each token; empty at temperature 0.
        """
        drafts: list[int] = []
        length = self._ngram.context_length
        recent = tuple(context[max(0, len(context) - length) :])
        for i in range(count):
            scores_V = self._adjusted_logits(recent)
            if noise:
                scores_V = scores_V - noise[i].numpy()
            drafts.append(int(scores_V.argmax()))
            recent = (*recent, drafts[-1])[-length:] if length else ()
        return drafts

    def _adjusted_logits(self, context: tuple[int, ...]) -> Float[NDArray, " V"]:
        """Kept for each context, because the drafts of a text often repeat one."""
        logits_V = self._logits.get(context)
        if logits_V is None:
            if len(self._logits) >= MAX_CONTEXTS:
                self._logits.clear()
            logits_1V = torch.from_numpy(np.log(self._ngram.distribution(context))).float()[None]
            if self._adjusts:
                logits_1V = adjust_logits(logits_1V, *self._settings)
            logits_V = self._logits[context] = logits_1V[0].numpy()
        return logits_V
