"""The base class of all models: tokens_BT -> logits_BTV."""

from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from chargpt.errors import describe_error


class LanguageModel(nn.Module):
    """A plain `nn.Module`, independent of Lightning and Hydra.

    Attributes:
        vocab_size: V.
        block_size: the longest context T.
        batch_multiple: in training, the number of sequences of a batch must be a multiple of this.
    """

    vocab_size: int
    block_size: int
    batch_multiple: int = 1

    def forward(self, tokens_BT: Integer[Tensor, "B T"], cache: Any = None) -> Float[Tensor, "B T V"]:
        """The logits of the token after each position. With a cache, tokens_BT follow the cached tokens."""
        raise NotImplementedError

    def new_cache(self, batch_size: int) -> Any:  # each model has its own type of cache
        """An empty KV cache for B sequences of up to `block_size` tokens. None if the model has no KV cache."""
        return None

    @torch.no_grad()
    def smoke_test(self) -> None:
        """Checks that one token gives logits: submodules that are each valid may still not fit together.

        Raises:
            ValueError: the forward pass failed, or the logits have a wrong shape.
        """
        was_training = self.training
        self.eval()
        try:
            logits_BTV = self(torch.zeros(1, 1, dtype=torch.long, device=self.device))
            if logits_BTV.shape != (1, 1, self.vocab_size):
                raise ValueError(f"its logits have the shape {tuple(logits_BTV.shape)}")
        except Exception as error:  # a user's submodule may raise anything
            reason = describe_error(error)
            raise ValueError(f"its submodules do not fit together ({reason})") from error
        finally:
            self.train(was_training)

    def parameter_count(self) -> int:
        """The number of trainable parameters; shared ones count once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def tied_weight_names(self) -> dict[str, str]:
        """Maps each additional name of a weight in the state dict to the first name of that weight."""
        first_names: dict[int, str] = {}
        named = self.state_dict(keep_vars=True).items()
        names = {name: first_names.setdefault(id(weight), name) for name, weight in named}
        return {name: first for name, first in names.items() if name != first}

    def flops_per_token(self) -> int | None:
        """Floating-point operations per token, forward and backward, at full blocks.

        Counts matrix products only: 2 operations per multiply-add, the backward pass twice the forward pass, and
        attention without regard to the causal mask (Chowdhery et al. 2022, PaLM, appendix B). None if unknown.
        """
        return None

    def input_embeddings(self) -> Float[Tensor, "V C"]:
        """The vector of each token at the model's input: its embedding, or its row of the bigram table.

        Raises:
            NotImplementedError: the model has no such table.
        """
        raise NotImplementedError

    def matrix_parameters(self) -> list[tuple[nn.Parameter, int]]:
        """The weight matrices between hidden layers, each with the number of linear maps stacked in it."""
        return []

    def embedding_tables(self) -> list[nn.Embedding]:
        """Large embedding tables, of which a batch uses few rows; a part of the parameters."""
        return []

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))
