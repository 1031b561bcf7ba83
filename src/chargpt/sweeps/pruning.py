"""The callback that reports the score of a trial to its Optuna study, and stops the trial if the pruner requests it."""

import lightning as L
import optuna

from chargpt.errors import TrialPruned
from chargpt.training.callbacks.metrics import MetricsCallback


class PruningCallback(L.Callback):
    """Reports the monitored metric after each validation, and raises `TrialPruned` if the pruner stops the trial.

    Args:
        metrics_callback: provides the metrics of the last validation.
        monitor: the name of the reported metric.
        storage, study, trial: the storage URL, the study name and the number of this run's trial.
        pruner: an Optuna pruner; compares the values reported by all trials.
    """

    def __init__(
        self,
        metrics_callback: MetricsCallback,
        monitor: str,
        storage: str,
        study: str,
        trial: int,
        pruner: optuna.pruners.BasePruner,
    ):
        self._metrics_callback, self._monitor = metrics_callback, monitor
        self._storage, self._study, self._number, self._pruner = storage, study, trial, pruner

    @property
    def state_key(self) -> str:
        return "Pruning"

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step, stop = trainer.global_step, False
        if trainer.is_global_zero and not (trainer.should_stop or trainer.sanity_checking):
            trial = self._trial()
            trial.report(self._metrics_callback.val_metrics[self._monitor], step)
            stop = trial.should_prune()
        if trainer.strategy.broadcast(stop):
            raise TrialPruned(f"pruned after step {step}: other trials had better scores by then")

    def _trial(self) -> optuna.Trial:
        """The trial that the sweeper's process has created."""
        storage = optuna.storages.RDBStorage(self._storage)
        study = optuna.load_study(study_name=self._study, storage=storage, pruner=self._pruner)
        study_id = storage.get_study_id_from_name(self._study)
        return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, self._number))
