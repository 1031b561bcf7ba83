"""The study of a search: its direction, which trials count, and that it is found again, without training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import optuna
import pytest
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
from chargpt.sweeps.trials import INSTEAD_OF, counted_trials, replace_interrupted_trials
from tests.conftest import REPO

RATES = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
# What 0.2 called the study of this search (for trainer.max_steps=60, at random).
NAME = (
    "model=gpt_nano,trainer.max_steps=60,trainer.max_steps=60____optimizer.lr_,_FloatDistribution_high=0.1,_log=True,"
    "_low=0.0001,_step=None_____target__ff43d351"
)
ACCURACY = {"monitor": "accuracy", "mode": "max"}


class Pretender:
    """A launcher whose jobs have these metrics at once; the search is cut off in job number `cut`."""

    def __init__(self, loader, config: DictConfig, figures: Callable[[DictConfig], dict[str, Any]], cut: int | None):
        self._loader, self._config, self._figures, self._cut = loader, config, figures, cut
        self.jobs: list[list[str]] = []

    def launch(self, jobs: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        returns = []
        for words in jobs:
            if len(self.jobs) == self._cut:
                raise SystemExit(3)
            self.jobs.append(words)
            own = [word for word in words if not word.startswith("+callbacks.pruning")]
            config = self._loader.load_sweep_config(self._config, own)
            home = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
            home.mkdir(parents=True, exist_ok=True)
            (home / "status.json").write_text(json.dumps({"state": "finished", "step": 60, "time": 0.0}))
            outcome = {"home": str(home), "code": 0, "metrics": self._figures(config), "reason": ""}
            returns.append(JobReturn(_return_value=outcome, status=JobStatus.COMPLETED))
        return returns


@pytest.fixture
def search(tmp_path):
    """Runs a search; its jobs. `settings` stand in the config, as if conf/train.yaml had them."""

    def run(
        *words: str,
        figures: Callable = lambda config: {"val_loss": config.optimizer.lr},
        cut: int | None = None,
        settings: dict[str, str] | None = None,
    ) -> list[list[str]]:
        words = ["model=gpt_nano", "trainer.max_steps=60", f"hydra.sweep.dir={tmp_path}/sweep", *words]
        if not any(word.startswith("hydra/sweeper=") for word in words):
            words.append("hydra/sweeper=random")
        words += default_overrides(words)
        with hydra.initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
            loader = GlobalHydra.instance().hydra.config_loader
            config = loader.load_configuration("train", words, RunMode.MULTIRUN)
            HydraConfig.instance().set_config(config)
            with open_dict(config):
                config.update(settings or {})
            context = HydraContext(config_loader=loader, callbacks=None)
            sweeper = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=None)
            sweeper._launcher = launcher = Pretender(loader, config, figures, cut)
            try:
                sweeper.sweep(words)
            except SystemExit:
                assert cut is not None
        return launcher.jobs

    return run


def studies(folder: Path) -> dict[str, optuna.Study]:
    url = f"sqlite:///{folder}/sweep/search.db"
    return {name: optuna.load_study(study_name=name, storage=url) for name in optuna.get_all_study_names(url)}


def test_a_study_of_an_earlier_version_is_found_and_continued(search, tmp_path, caplog):
    (tmp_path / "sweep").mkdir()
    study = optuna.create_study(study_name=NAME, storage=f"sqlite:///{tmp_path}/sweep/search.db")
    known = {"distributions": {"optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True)}}
    for rate, value in ((0.01, 0.00002), (0.02, 2.0)):
        home = {"home": str(tmp_path)}
        study.add_trial(optuna.create_trial(params={"optimizer.lr": rate}, value=value, user_attrs=home, **known))
    cut = {"params": {"optimizer.lr": 0.03}, "state": TrialState.FAIL, "user_attrs": {"cut off": True}}
    study.add_trial(optuna.create_trial(**cut, **known))
    caplog.set_level("INFO")
    jobs = search(RATES, "hydra.sweeper.n_trials=4")
    assert len(jobs) == 2, "two count already"
    assert [*studies(tmp_path)] == [NAME]
    assert "the best: optimizer.lr=0.01   validation loss 0.0000" in caplog.text
    assert search(RATES, "hydra.sweeper.n_trials=4") == []


def test_the_highest_is_the_best_where_more_is_better(search, tmp_path, caplog):
    caplog.set_level("INFO")
    figures = lambda config: {"val_loss": config.optimizer.lr, **ACCURACY, "score": config.optimizer.lr}  # noqa: E731
    search(RATES, "hydra.sweeper.n_trials=3", settings=ACCURACY, figures=figures)
    (study,) = studies(tmp_path).values()
    rates = [float(f"{trial.params['optimizer.lr']:.4g}") for trial in study.trials]
    assert [trial.value for trial in study.trials] == rates
    assert study.direction == StudyDirection.MAXIMIZE
    assert study.best_value == max(rates)
    assert f"accuracy {max(rates):.4f}" in caplog.text
    search(RATES, "hydra.sweeper.n_trials=1")
    assert {study.direction for study in studies(tmp_path).values()} == {*StudyDirection} - {StudyDirection.NOT_SET}


@pytest.mark.parametrize("word", ["data/tokenizer=character,pieces", "+data.tokenizer.size=256,512"])
def test_a_search_over_tokenizers_compares_bits(search, tmp_path, word):
    (tmp_path / "mine" / "data" / "tokenizer").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "tokenizer" / "pieces.yaml").write_text("size: 512\n")
    figures = lambda config: {"val_loss": 4.0, "val_bpc": 1.5, "monitor": "val_loss", "mode": "min", "score": 4.0}  # noqa: E731
    more = ["hydra.sweeper.n_trials=2", "hydra/sweeper=halving", f"hydra.searchpath=[file://{tmp_path}/mine]"]
    jobs = search(word, *more, figures=figures)
    (study,) = studies(tmp_path).values()
    assert [trial.value for trial in counted_trials(study)] == [1.5, 1.5]
    assert all("+callbacks.pruning.monitor='val_bpc'" in words for words in jobs)
    assert [words[-2] for words in jobs] == [
        f"+callbacks.pruning.trial={trial.number}" for trial in counted_trials(study)
    ]


def test_a_trial_without_the_figure_counts_as_failed_and_is_told(search, tmp_path, caplog):
    search(RATES, "hydra.sweeper.n_trials=1", settings=ACCURACY)
    (study,) = studies(tmp_path).values()
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]
    assert "trial 0 counts as failed: its metrics.json has no accuracy" in caplog.text


def test_a_search_over_monitors_is_refused(search):
    with pytest.raises(HydraException, match="one monitor"):
        search("++monitor=val_loss,val_bpc")


def test_a_trial_that_was_cut_off_twice_is_made_up_for_and_does_not_count(search, tmp_path):
    words = [RATES, "hydra.sweeper.n_trials=4"]
    assert len(search(*words, cut=2)) == 2
    assert search(*words, cut=0) == []
    jobs = search(*words)
    assert len(jobs) == 2
    (study,) = studies(tmp_path).values()
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 2 + [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 2
    assert [trial.number for trial in counted_trials(study)] == [0, 1, 4, 5]
    cut, again, last = (study.trials[n] for n in (2, 3, 4))
    assert cut.params == again.params == last.params
    assert cut.user_attrs["home"] == last.user_attrs["home"]
    assert [trial.user_attrs.get(INSTEAD_OF) for trial in study.trials] == [None, None, None, 2, 3, None]


def test_who_is_cut_off_while_it_makes_up_does_so_once():
    study = optuna.create_study()
    trial = study.ask({"rate": FloatDistribution(0, 1)})
    study.enqueue_trial(trial.params, user_attrs={INSTEAD_OF: trial.number})  # and then it was killed
    replace_interrupted_trials(study)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert counted_trials(study) == []


def test_a_trial_that_was_cut_off_as_it_was_drawn_is_drawn_again_to_the_end():
    study = optuna.create_study()
    study.ask()
    replace_interrupted_trials(study)
    again = study.ask({"rate": FloatDistribution(0, 1)})
    assert again.params.keys() == {"rate"}
    study.tell(again, 1.0)
    assert [trial.number for trial in counted_trials(study)] == [1]
