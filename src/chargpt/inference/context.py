"""What a model sees of the text so far: all of it, until it outgrows a block."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from chargpt.errors import UserError
from chargpt.inference.decode import DecodeStep
from chargpt.model.language_model import LanguageModel

WINDOWS = ("half", "exact")
QUANTIZATIONS = (None, "int8")


class Window:
    """The newest tokens of B texts, at most `block_size` of each.

    Args:
        kind: one of `WINDOWS`; what a text that outgrows the block is cropped to.
    """

    def __init__(self, block_size: int, kind: str, batch_size: int, device: torch.device | str):
        self._block_size, self._kind = block_size, kind
        self.tokens_BT = torch.empty(batch_size, 0, dtype=torch.long, device=device)

    def append(self, tokens_BT: Integer[Tensor, "B T"]) -> bool:
        """Whether the window was cropped: then every token has moved, and with it every key and value."""
        seen = self.tokens_BT.shape[1]
        self.tokens_BT = torch.cat((self.tokens_BT, tokens_BT), dim=1)
        if self.tokens_BT.shape[1] <= self._block_size:
            return False
        keep = self._block_size if self._kind == "exact" or not seen else max(1, self._block_size // 2)
        self.tokens_BT = self.tokens_BT[:, -keep:]
        return True


class Context:
    """The newest tokens of B texts, and the model's memory of them.

    Args:
        model: in eval mode.
        batch_size: B.
        window, quantize: as in `chargpt.inference.generate`.

    Raises:
        UserError: the model has no weights that could be quantized, or not on this device.
    """

    def __init__(self, model: LanguageModel, batch_size: int, window: str = "half", quantize: str | None = None):
        if quantize and (not DecodeStep.supports(model) or model.device.type != "cpu"):
            raise UserError(f"quantize={quantize} is for a Transformer of the bench's own parts, on the CPU")
        self._model, self._batch_size, self._kind = model, batch_size, window
        self._window = Window(model.block_size, window, batch_size, model.device)
        self._cache = model.new_cache(batch_size)
        by_rows = DecodeStep.supports(model) and not torch.is_autocast_enabled(model.device.type)
        self._one_token = DecodeStep.create(model, batch_size, quantize) if by_rows else None

    @torch.inference_mode()
    def extend(self, tokens_BT: Integer[Tensor, "B T"]) -> Float[Tensor, "B V"]:
        """Appends T >= 1 tokens; gives the logits of the token after them, valid until the next call."""
        if self._window.append(tokens_BT):
            tokens_BT = self._window.tokens_BT
            moves_on = self._kind == "half" and self._cache is not None
            self._cache = self._model.new_cache(self._batch_size) if moves_on else None
        if self._cache is not None and self._one_token is not None and tokens_BT.shape[1] == 1:
            return self._one_token(tokens_BT[:, 0], self._cache)
        if self._cache is None:
            tokens_BT = self._window.tokens_BT
        return self._model(tokens_BT, self._cache)[:, -1]
