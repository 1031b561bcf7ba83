"""The context of generation: the window of newest tokens that fits into a block, and its KV cache."""

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
        kind: one of `WINDOWS`: how to crop a text that exceeds `block_size`.
    """

    def __init__(self, block_size: int, kind: str, batch_size: int, device: torch.device | str):
        self._block_size, self._kind = block_size, kind
        self.tokens_BT = torch.empty(batch_size, 0, dtype=torch.long, device=device)

    def append(self, tokens_BT: Integer[Tensor, "B T"]) -> bool:
        """Appends T tokens. Returns whether the window was cropped.

        Cropping changes the position of every token, which invalidates all cached keys and values.
        """
        length = self.tokens_BT.shape[1]
        self.tokens_BT = torch.cat((self.tokens_BT, tokens_BT), dim=1)
        if self.tokens_BT.shape[1] <= self._block_size:
            return False
        keep = self._block_size if self._kind == "exact" or not length else max(1, self._block_size // 2)
        self.tokens_BT = self.tokens_BT[:, -keep:]
        return True


class Context:
    """The newest tokens of B texts, and their KV cache.

    Args:
        model: in eval mode.
        batch_size: B.
        window, quantize: as in `chargpt.inference.generate`.

    Raises:
        UserError: the model cannot be quantized, or not on this device.
    """

    def __init__(self, model: LanguageModel, batch_size: int, window: str = "half", quantize: str | None = None):
        if quantize and (not DecodeStep.supports(model) or model.device.type != "cpu"):
            raise UserError(
                f"quantize={quantize}: it supports only Transformers with CausalSelfAttention and other components of "
                f"chargpt's own, on the CPU"
            )
        self._model, self._batch_size, self._kind = model, batch_size, window
        self._window = Window(model.block_size, window, batch_size, model.device)
        self._cache = model.new_cache(batch_size)
        supported = DecodeStep.supports(model) and not torch.is_autocast_enabled(model.device.type)
        self._decode_step = DecodeStep.create(model, batch_size, quantize) if supported else None

    @torch.inference_mode()
    def extend(self, tokens_BT: Integer[Tensor, "B T"]) -> Float[Tensor, "B V"]:
        """Appends T >= 1 tokens and returns the logits of the next token, valid until the next call."""
        if self._window.append(tokens_BT):
            tokens_BT = self._window.tokens_BT
            refill = self._kind == "half" and self._cache is not None
            self._cache = self._model.new_cache(self._batch_size) if refill else None
        if self._cache is not None and self._decode_step is not None and tokens_BT.shape[1] == 1:
            return self._decode_step(tokens_BT[:, 0], self._cache)
        if self._cache is None:
            tokens_BT = self._window.tokens_BT
        return self._model(tokens_BT, self._cache)[:, -1]
