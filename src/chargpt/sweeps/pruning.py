"""A trial of a search reports how it goes, and stops where the others went better."""

import lightning as L
import optuna

from chargpt.errors import Pruned
from chargpt.training.curves import Curves


class Pruning(L.Callback):
    """Asks an Optuna pruner after each validation whether the run is worth its time.

    Args:
        storage, study, trial: of the trial that this run is.
        pruner: decides from the validation losses of all trials so far.
    """

    def __init__(self, storage: str, study: str, trial: int, pruner: optuna.pruners.BasePruner):
        self._names = {"study_name": study, "storage": storage, "pruner": pruner}
        self._trial_id = trial

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step, stop = trainer.global_step, False
        if trainer.is_global_zero and not trainer.should_stop:
            curves = next(c for c in trainer.callbacks if isinstance(c, Curves))
            trial = optuna.trial.Trial(optuna.load_study(**self._names), self._trial_id)
            trial.report(curves.val_loss, step)
            stop = trial.should_prune()
        if trainer.strategy.broadcast(stop):
            raise Pruned(f"pruned after step {step}: other trials were better by then")
