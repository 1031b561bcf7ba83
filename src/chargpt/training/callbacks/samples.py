"""A sample of the model's text at each validation."""

import lightning as L
from lightning.pytorch.strategies import FSDPStrategy

from chargpt.errors import UserError
from chargpt.inference.generate import generate
from chargpt.utils.seeding import SAMPLE, fold_in


class Samples(L.Callback):
    """Logs a text to every logger that takes one (`log_text`), drawn from a generator of its own.

    Args:
        max_new_tokens: length of the text; 0 for none.
        seed: the run's seed.
    """

    def __init__(self, max_new_tokens: int, seed: int):
        if max_new_tokens < 0:
            raise UserError(f"max_new_tokens={max_new_tokens}: it must not be negative; 0 is for no sample")
        self._max_new_tokens, self._seed = max_new_tokens, seed

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        sharded = isinstance(trainer.strategy, FSDPStrategy)  # rank 0 alone has not all the weights
        takers = [logger for logger in trainer.loggers if hasattr(logger, "log_text")]
        if sharded or not takers or not trainer.is_global_zero or not self._max_new_tokens:
            return
        tokenizer, step = trainer.datamodule.tokenizer, trainer.global_step
        prompt_N = trainer.datamodule.val_tokens_N[:1]
        tokens = generate(pl_module.model, prompt_N, self._max_new_tokens, seed=fold_in(self._seed, SAMPLE, step))
        text = "".join(tokenizer.decode(new_1) for new_1 in tokens)
        for logger in takers:
            logger.log_text("sample", text, step)
