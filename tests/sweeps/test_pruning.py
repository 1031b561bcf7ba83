"""The pruning callback reports the monitored metric, and stops a trial if the pruner decides so."""

from unittest.mock import Mock

import lightning as L
import optuna
import pytest

from chargpt.errors import TrialPruned
from chargpt.sweeps.pruning import PruningCallback
from chargpt.training.callbacks.metrics import MetricsCallback


@pytest.fixture
def storage(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/search.db"


def end_validation(callback: PruningCallback, step: int, **attributes) -> None:
    """Calls the callback's hook at the end of a validation, with these attributes of the trainer."""
    trainer = Mock(
        spec=L.Trainer,
        global_step=step,
        **{"is_global_zero": True, "should_stop": False, "sanity_checking": False} | attributes,
    )
    trainer.strategy.broadcast = lambda stop: stop
    callback.on_validation_end(trainer, Mock(spec=L.LightningModule))


@pytest.mark.parametrize(("direction", "worse"), [("minimize", 2.0), ("maximize", 0.5)])
def test_the_metric_is_reported_and_the_worse_trial_is_stopped(storage, direction, worse):
    study = optuna.create_study(study_name="a study", storage=storage, direction=direction)
    optuna.create_study(study_name="another", storage=storage).ask()  # so that trial ids differ from trial numbers
    metrics_callback = Mock(spec=MetricsCallback)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=15)
    first = study.ask()
    callback = PruningCallback(metrics_callback, "accuracy", storage, "a study", first.number, pruner)
    metrics_callback.val_metrics = {"val_loss": 7.0, "accuracy": 1.0}
    end_validation(callback, 10)
    end_validation(callback, 20)
    study.tell(first, 1.0)
    second = study.ask()
    callback = PruningCallback(metrics_callback, "accuracy", storage, "a study", second.number, pruner)
    metrics_callback.val_metrics = {"val_loss": 0.0, "accuracy": worse}
    end_validation(callback, 10)
    with pytest.raises(TrialPruned, match="pruned after step 20"):
        end_validation(callback, 20)
    assert [trial.intermediate_values for trial in study.trials] == [{10: 1.0, 20: 1.0}, {10: worse, 20: worse}]


def test_only_rank_0_reports_and_only_before_the_trainer_stops(storage):
    study = optuna.create_study(study_name="a study", storage=storage)
    metrics_callback, number = Mock(spec=MetricsCallback, val_metrics={"val_loss": 1.0}), study.ask().number
    callback = PruningCallback(metrics_callback, "val_loss", storage, "a study", number, optuna.pruners.NopPruner())
    for attributes in ({"is_global_zero": False}, {"should_stop": True}):
        end_validation(callback, 10, **attributes)
    assert study.trials[0].intermediate_values == {}
    end_validation(callback, 20)
    assert study.trials[0].intermediate_values == {20: 1.0}
