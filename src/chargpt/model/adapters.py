"""Adapts modules of other projects: any `nn.Module`, nanoGPT's `GPT`, and Hugging Face's causal language models."""

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chargpt.errors import UserError, describe_error
from chargpt.model.language_model import LanguageModel


class ModuleAdapter(LanguageModel):
    """Any `nn.Module` with `forward(tokens_BT) -> logits_BTV` as a `LanguageModel`.

    Without a KV cache: for each new token the context is recomputed.

    Args:
        module: the module, also an attribute.
        vocab_size: V.
        block_size: the longest context T.
    """

    def __init__(self, module: nn.Module, vocab_size: int, block_size: int):
        super().__init__()
        self.module = module
        self.vocab_size, self.block_size = vocab_size, block_size

    def forward(self, tokens_BT: Integer[Tensor, "B T"], cache: None = None) -> Float[Tensor, "B T V"]:
        logits_BTV = self.logits(tokens_BT)
        shape = (*tokens_BT.shape, self.vocab_size)
        if not isinstance(logits_BTV, Tensor) or logits_BTV.shape != shape:
            raise ValueError(
                f"{type(self.module).__name__} returns {_describe(logits_BTV)}, not logits of shape {shape}"
            )
        return logits_BTV

    def logits(self, tokens_BT: Integer[Tensor, "B T"]) -> Any:
        """Calls the module. Subclasses adapt modules with another signature; `forward` checks the result."""
        return self.module(tokens_BT)

    @torch.no_grad()
    def smoke_test(self) -> None:
        for length in (self.block_size, 1):  # a training block, and the first token of a sample
            try:
                logits_BTV = self._evaluate(torch.zeros(1, length, dtype=torch.long, device=self.device))
            except Exception as error:  # the module may raise anything
                reason = describe_error(error)
                raise ValueError(f"a forward pass with {length} token{'s' * (length > 1)} fails ({reason})") from error
            if logits_BTV.isnan().any():
                raise ValueError(f"the logits of {type(self.module).__name__} are NaN")

    @torch.no_grad()
    def is_causal(self) -> bool:
        """Whether the logits of a position are independent of later tokens, up to rounding."""
        tokens_1T = torch.arange(self.block_size, device=self.device)[None] % self.vocab_size
        changed_1T = tokens_1T.clone()
        changed_1T[0, -1] = (changed_1T[0, -1] + 1) % self.vocab_size
        one_1TV, other_1TV = self._evaluate(tokens_1T)[:, :-1], self._evaluate(changed_1T)[:, :-1]
        return torch.allclose(one_1TV, other_1TV, rtol=1e-3, atol=1e-3 * max(1.0, one_1TV.abs().max().item()))

    def unused_parameters(self) -> list[str]:
        """The names of the trainable parameters on which the logits do not depend."""
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        logits_BTV = self._evaluate(torch.zeros(1, self.block_size, dtype=torch.long, device=self.device))
        if not (named and logits_BTV.requires_grad):
            return [*named]
        gradients = torch.autograd.grad(logits_BTV.sum(), [*named.values()], allow_unused=True)
        return [name for name, gradient in zip(named, gradients, strict=True) if gradient is None]

    def _evaluate(self, tokens_BT: Integer[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """A forward pass in evaluation mode."""
        was_training = self.training
        self.eval()
        try:
            return self(tokens_BT)
        finally:
            self.train(was_training)

    def input_embeddings(self) -> Float[Tensor, "V C"]:
        """The only embedding table with a row per token.

        Raises:
            NotImplementedError: the module has none, or several.
        """
        tables = [m.weight for m in self._embeddings() if m.num_embeddings == self.vocab_size]
        if len(tables) != 1:
            raise NotImplementedError(f"{type(self.module).__name__} has {len(tables)} embedding tables of tokens")
        return tables[0]

    def matrix_parameters(self) -> list[tuple[nn.Parameter, int]]:
        """All matrices but embedding tables and the head, the last linear layer to V."""
        heads = [m for m in self.modules() if isinstance(m, nn.Linear) and m.out_features == self.vocab_size]
        excluded = {id(m.weight) for m in (*self._embeddings(), *heads[-1:])}
        return [(p, 1) for p in self.parameters() if p.ndim == 2 and id(p) not in excluded]

    def flops_per_token(self) -> int | None:
        """Three times the operations of a forward pass, counted by torch; None if they cannot be counted."""
        module = copy.deepcopy(self)
        tokens_BT = torch.zeros(1, self.block_size, dtype=torch.long, device=self.device)
        counter = FlopCounterMode(display=False)
        try:
            with warnings.catch_warnings(action="ignore"), contextlib.ExitStack() as stack:
                # The counter does not count the operations of fused kernels.
                for context in (torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), counter):
                    stack.enter_context(context)
                module._evaluate(tokens_BT)
        except (RuntimeError, NotImplementedError):
            return None
        return 3 * counter.get_total_flops() // self.block_size

    def _embeddings(self) -> list[nn.Embedding]:
        return [m for m in self.modules() if isinstance(m, nn.Embedding)]


class NanoGPT(ModuleAdapter):
    """nanoGPT's `GPT`, or another model that is built from a config object and called with (tokens, targets).

    Without targets nanoGPT returns the logits of the last position only, so it is always called with targets. Its own
    loss, which ignores targets of -1, is not used. What it prints goes to stderr.

    Args:
        model: builds the module from the config object.
        config: the config object, with the settings of the model.
    """

    def __init__(self, model: Callable[[Any], nn.Module], config: Any, vocab_size: int, block_size: int):
        with contextlib.redirect_stdout(sys.stderr):
            module = model(config)
        super().__init__(module, vocab_size, block_size)

    def logits(self, tokens_BT: Integer[Tensor, "B T"]) -> Any:
        tokens_BT = tokens_BT.contiguous()  # nanoGPT's loss requires it of targets
        logits_BTV, _ = self.module(tokens_BT, tokens_BT)
        return logits_BTV


class HuggingFace(ModuleAdapter):
    """A causal language model of Hugging Face's transformers, for example `GPT2LMHeadModel`.

    Args:
        model: builds the module from the config object.
        config: the config object, for example a `GPT2Config`.

    Raises:
        UserError: the config names an attention implementation that would be downloaded.
    """

    def __init__(self, model: Callable[[Any], nn.Module], config: Any, vocab_size: int, block_size: int):
        implementation = getattr(config, "_attn_implementation", None)
        if isinstance(implementation, str) and "/" in implementation:  # transformers downloads and runs its code
            raise UserError(
                f"model.config.attn_implementation={implementation}: it would be downloaded; use eager or sdpa"
            )
        super().__init__(model(config), vocab_size, block_size)

    def logits(self, tokens_BT: Integer[Tensor, "B T"]) -> Any:
        return self.module(input_ids=tokens_BT, use_cache=False).logits


def _describe(output: Any) -> str:
    """What a module returned instead of logits, and the adapter for it."""
    if isinstance(output, Tensor):
        return f"shape {tuple(output.shape)}"
    adapter = NanoGPT if isinstance(output, tuple) else HuggingFace if hasattr(output, "logits") else None
    hint = f" (use {adapter.__module__}.{adapter.__name__})" if adapter else ""
    return type(output).__name__ + hint
