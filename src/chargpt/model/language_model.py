"""What every model of the bench is: tokens_BT -> logits_BTV, and it knows its size."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn


class LanguageModel(nn.Module):
    """A plain `nn.Module` that knows nothing of Lightning or Hydra.

    Attributes:
        vocab_size: V.
        block_size: the longest context T.
        batch_multiple: it is trained on a multiple of so many sequences at a time.
    """

    vocab_size: int
    block_size: int
    batch_multiple: int = 1

    def forward(self, tokens_BT: Integer[Tensor, "B T"], cache: list | None = None) -> Float[Tensor, "B T V"]:
        """Logits of the token after each position. With a cache, tokens_BT follow the tokens in it."""
        raise NotImplementedError

    def new_cache(self, batch_size: int) -> list | None:
        """Empty memory for B sequences of up to `block_size` tokens; None where there is none to keep."""
        return None

    @torch.no_grad()
    def smoke_test(self) -> None:
        """That it takes a token and answers with logits: parts that are well in themselves may not go together.

        Raises:
            ValueError: says what happened.
        """
        trained = self.training
        self.eval()
        try:
            logits_BTV = self(torch.zeros(1, 1, dtype=torch.long, device=self.device))
            if logits_BTV.shape != (1, 1, self.vocab_size):
                raise ValueError(f"its logits have the shape {tuple(logits_BTV.shape)}")
        except Exception as error:  # any part may fail in any way
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"its parts do not go together ({reason})") from error
        finally:
            self.train(trained)

    def parameter_count(self) -> int:
        """Trainable numbers, shared ones once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def tied_weight_names(self) -> dict[str, str]:
        """The further names of weights that have several in the state dict, each with that weight's first one."""
        first: dict[int, str] = {}
        named = self.state_dict(keep_vars=True).items()
        names = {name: first.setdefault(id(weight), name) for name, weight in named}
        return {name: other for name, other in names.items() if name != other}

    def flops_per_token(self) -> int:
        """Floating-point operations a token, forward and backward, at full blocks.

        Matrix products only, 2 operations a multiply-add, the backward pass twice the forward one; attention
        counted in full, as if it had no causal mask (Chowdhery et al. 2022, PaLM, appendix B).
        """
        raise NotImplementedError

    def input_embeddings(self) -> Float[Tensor, "V C"]:
        """What stands for each token on its way in: its embedding, or its row of the table."""
        raise NotImplementedError

    def matrix_parameters(self) -> list[tuple[nn.Parameter, int]]:
        """The weights between hidden layers, each with the number of linear maps that are stacked in it."""
        return []

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
