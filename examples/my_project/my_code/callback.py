"""A Lightning callback: logs how many sums of the validation split the model completes correctly."""

import lightning as L


class SumAccuracy(L.Callback):
    """Logs `sum_accuracy`, the fraction of `count` sums whose result is the most likely token."""

    def __init__(self, count: int):
        self._count = count

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        tokenizer, tokens_N = trainer.datamodule.tokenizer, trainer.datamodule.val_tokens_N
        lines = tokenizer.decode(tokens_N).split("\n")[1:-1][: self._count]
        correct = [self._is_correct(*line.split("="), pl_module, tokenizer) for line in lines]
        pl_module.log("sum_accuracy", sum(correct) / len(correct), logger=True)

    def _is_correct(self, question: str, answer: str, pl_module: L.LightningModule, tokenizer) -> bool:
        tokens_BT = tokenizer.encode(f"{question}=")[None].long().to(pl_module.device)
        prediction = pl_module.model(tokens_BT)[0, -1].argmax()
        return tokenizer.decode(prediction[None]) == answer
