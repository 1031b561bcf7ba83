"""A trial reports the figure that its search compares, and stops where the others were better by then."""

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


def validated(callback: PruningCallback, step: int, **settings) -> None:
    """A validation ends at a step."""
    trainer = Mock(spec=L.Trainer, global_step=step, **{"is_global_zero": True, "should_stop": False} | settings)
    trainer.strategy.broadcast = lambda stop: stop
    callback.on_validation_end(trainer, Mock(spec=L.LightningModule))


@pytest.mark.parametrize(("direction", "worse"), [("minimize", 2.0), ("maximize", 0.5)])
def test_the_figure_is_reported_and_the_worse_trial_is_stopped(storage, direction, worse):
    study = optuna.create_study(study_name="a study", storage=storage, direction=direction)
    optuna.create_study(study_name="another", storage=storage).ask()  # so ids are not numbers
    metrics_callback = Mock(spec=MetricsCallback)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=15)
    first = study.ask()
    callback = PruningCallback(metrics_callback, "accuracy", storage, "a study", first.number, pruner)
    metrics_callback.val_metrics = {"val_loss": 7.0, "accuracy": 1.0}
    validated(callback, 10)
    validated(callback, 20)
    study.tell(first, 1.0)
    second = study.ask()
    callback = PruningCallback(metrics_callback, "accuracy", storage, "a study", second.number, pruner)
    metrics_callback.val_metrics = {"val_loss": 0.0, "accuracy": worse}
    validated(callback, 10)
    with pytest.raises(TrialPruned, match="pruned after step 20"):
        validated(callback, 20)
    assert [trial.intermediate_values for trial in study.trials] == [{10: 1.0, 20: 1.0}, {10: worse, 20: worse}]


def test_only_the_first_rank_reports_and_nobody_after_the_end(storage):
    study = optuna.create_study(study_name="a study", storage=storage)
    metrics_callback, number = Mock(spec=MetricsCallback, val_metrics={"val_loss": 1.0}), study.ask().number
    callback = PruningCallback(metrics_callback, "val_loss", storage, "a study", number, optuna.pruners.NopPruner())
    for settings in ({"is_global_zero": False}, {"should_stop": True}):
        validated(callback, 10, **settings)
    assert study.trials[0].intermediate_values == {}
    validated(callback, 20)
    assert study.trials[0].intermediate_values == {20: 1.0}
