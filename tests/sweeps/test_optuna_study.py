"""The study of a search, without training: its name, its direction, and which trials count."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import optuna
import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from chargpt.sweeps.sweep import default_overrides
from chargpt.sweeps.trials import REPLACES, counted_trials, replace_interrupted_trials
from tests.conftest import REPO

RATES = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
# The study name of version 0.2 for this search (with trainer.max_steps=60 and the random sampler).
NAME = (
    "model=gpt_nano,trainer.max_steps=60,trainer.max_steps=60____optimizer.lr_,_FloatDistribution_high=0.1,_log=True,"
    "_low=0.0001,_step=None_____target__ff43d351"
)
ACCURACY = {"monitor": "accuracy", "mode": "max"}


class FakeLauncher:
    """A launcher whose jobs return `metrics(config)` without training; interrupted in job `interrupt_at`."""

    def __init__(
        self,
        loader: ConfigLoader,
        config: DictConfig,
        metrics: Callable[[DictConfig], dict[str, Any]],
        interrupt_at: int | None,
    ):
        self._loader, self._config, self._metrics, self._interrupt_at = loader, config, metrics, interrupt_at
        self.jobs: list[list[str]] = []

    def launch(self, jobs: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        returns = []
        for overrides in jobs:
            if len(self.jobs) == self._interrupt_at:
                raise SystemExit(3)
            self.jobs.append(overrides)
            known = [override for override in overrides if not override.startswith("+callbacks.pruning")]
            config = self._loader.load_sweep_config(self._config, known)
            directory = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "status.json").write_text(json.dumps({"state": "finished", "step": 60, "time": 0.0}))
            result = {"directory": str(directory), "code": 0, "metrics": self._metrics(config), "reason": ""}
            returns.append(JobReturn(_return_value=result, status=JobStatus.COMPLETED))
        return returns


@pytest.fixture
def search(tmp_path):
    """Runs a search and returns its jobs. `settings` change the config without an override."""

    def run(
        *overrides: str,
        metrics: Callable = lambda config: {"val_loss": config.optimizer.lr},
        interrupt_at: int | None = None,
        settings: dict[str, str] | None = None,
    ) -> list[list[str]]:
        overrides = ["model=gpt_nano", "trainer.max_steps=60", f"hydra.sweep.dir={tmp_path}/sweep", *overrides]
        if not any(override.startswith("hydra/sweeper=") for override in overrides):
            overrides.append("hydra/sweeper=random")
        overrides += default_overrides(overrides)
        with hydra.initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
            loader = GlobalHydra.instance().hydra.config_loader
            config = loader.load_configuration("train", overrides, RunMode.MULTIRUN)
            HydraConfig.instance().set_config(config)
            with open_dict(config):
                config.update(settings or {})
            context = HydraContext(config_loader=loader, callbacks=None)
            sweeper = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=None)
            sweeper._launcher = launcher = FakeLauncher(loader, config, metrics, interrupt_at)
            try:
                sweeper.sweep(overrides)
            except SystemExit:
                assert interrupt_at is not None
        return launcher.jobs

    return run


def studies(folder: Path) -> dict[str, optuna.Study]:
    url = f"sqlite:///{folder}/sweep/search.db"
    return {name: optuna.load_study(study_name=name, storage=url) for name in optuna.get_all_study_names(url)}


def test_a_study_of_an_earlier_version_is_found_and_continued(search, tmp_path, caplog):
    (tmp_path / "sweep").mkdir()
    study = optuna.create_study(study_name=NAME, storage=f"sqlite:///{tmp_path}/sweep/search.db")
    space = {"distributions": {"optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True)}}
    for rate, value in ((0.01, 0.00002), (0.02, 2.0)):
        attributes = {"home": str(tmp_path)}
        study.add_trial(optuna.create_trial(params={"optimizer.lr": rate}, value=value, user_attrs=attributes, **space))
    interrupted = {"params": {"optimizer.lr": 0.03}, "state": TrialState.FAIL, "user_attrs": {"cut off": True}}
    study.add_trial(optuna.create_trial(**interrupted, **space))
    caplog.set_level("INFO")
    jobs = search(RATES, "hydra.sweeper.n_trials=4")
    assert len(jobs) == 2, "two trials are already counted"
    assert [*studies(tmp_path)] == [NAME]
    assert "best trial: optimizer.lr=0.01   validation loss 0.0000" in caplog.text
    assert search(RATES, "hydra.sweeper.n_trials=4") == []


@pytest.mark.slow
def test_the_mode_max_maximizes_the_score(search, tmp_path, caplog):
    caplog.set_level("INFO")
    metrics = lambda config: {"val_loss": config.optimizer.lr, **ACCURACY, "score": config.optimizer.lr}  # noqa: E731
    search(RATES, "hydra.sweeper.n_trials=3", settings=ACCURACY, metrics=metrics)
    (study,) = studies(tmp_path).values()
    rates = [float(f"{trial.params['optimizer.lr']:.4g}") for trial in study.trials]
    assert [trial.value for trial in study.trials] == rates
    assert study.direction == StudyDirection.MAXIMIZE
    assert study.best_value == max(rates)
    assert f"accuracy {max(rates):.4f}" in caplog.text
    search(RATES, "hydra.sweeper.n_trials=1")
    assert {study.direction for study in studies(tmp_path).values()} == {*StudyDirection} - {StudyDirection.NOT_SET}


@pytest.mark.parametrize("override", ["data/tokenizer=character,pieces", "+data.tokenizer.size=256,512"])
def test_a_search_over_tokenizers_compares_bits_per_character(search, tmp_path, override):
    (tmp_path / "mine" / "data" / "tokenizer").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "tokenizer" / "pieces.yaml").write_text("size: 512\n")
    metrics = lambda config: {"val_loss": 4.0, "val_bpc": 1.5, "monitor": "val_loss", "mode": "min", "score": 4.0}  # noqa: E731
    sweeper = ["hydra.sweeper.n_trials=2", "hydra/sweeper=halving", f"hydra.searchpath=[file://{tmp_path}/mine]"]
    jobs = search(override, *sweeper, metrics=metrics)
    (study,) = studies(tmp_path).values()
    trials = counted_trials(study)
    assert [trial.value for trial in trials] == [1.5, 1.5]
    assert all("+callbacks.pruning.monitor='val_bpc'" in overrides for overrides in jobs)
    assert [overrides[-2] for overrides in jobs] == [f"+callbacks.pruning.trial={trial.number}" for trial in trials]


def test_a_trial_without_the_monitored_metric_counts_as_failed(search, tmp_path, caplog):
    search(RATES, "hydra.sweeper.n_trials=1", settings=ACCURACY)
    (study,) = studies(tmp_path).values()
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]
    assert "trial 0 counts as failed: its metrics.json has no accuracy" in caplog.text


def test_a_search_over_monitors_is_refused(search):
    with pytest.raises(HydraException, match="one monitor"):
        search("++monitor=val_loss,val_bpc")


@pytest.mark.slow
def test_a_trial_that_was_interrupted_twice_is_replaced_and_does_not_count(search, tmp_path):
    overrides = [RATES, "hydra.sweeper.n_trials=4"]
    assert len(search(*overrides, interrupt_at=2)) == 2
    assert search(*overrides, interrupt_at=0) == []
    jobs = search(*overrides)
    assert len(jobs) == 2
    (study,) = studies(tmp_path).values()
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 2 + [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 2
    assert [trial.number for trial in counted_trials(study)] == [0, 1, 4, 5]
    first, second, third = (study.trials[n] for n in (2, 3, 4))
    assert first.params == second.params == third.params
    assert first.user_attrs["home"] == third.user_attrs["home"]
    assert [trial.user_attrs.get(REPLACES) for trial in study.trials] == [None, None, None, 2, 3, None]


def test_a_search_killed_while_it_replaces_a_trial_replaces_it_only_once():
    study = optuna.create_study()
    trial = study.ask({"rate": FloatDistribution(0, 1)})
    study.enqueue_trial(trial.params, user_attrs={REPLACES: trial.number})  # then it was killed
    replace_interrupted_trials(study)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert counted_trials(study) == []


def test_a_trial_that_was_interrupted_before_it_had_values_is_sampled_again():
    study = optuna.create_study()
    study.ask()
    replace_interrupted_trials(study)
    trial = study.ask({"rate": FloatDistribution(0, 1)})
    assert trial.params.keys() == {"rate"}
    study.tell(trial, 1.0)
    assert [trial.number for trial in counted_trials(study)] == [1]
