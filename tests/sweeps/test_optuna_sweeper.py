"""The Optuna sweeper: the distributions of the override syntax, and studies that are resumed after kill -9."""

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from hydra_plugins.chargpt_optuna_sweeper import distribution
from tests.conftest import process
from tests.sweeps.processes import Sweep, finished, modification_times, steps_done
from tests.training import run_artifacts


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("x=interval(0.0,0.3)", FloatDistribution(0.0, 0.3)),
        ("x=int(interval(1,5))", IntDistribution(1, 5)),
        ("x=tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("x=range(2,9,step=2)", IntDistribution(2, 8, step=2)),
        ("x=2,4,8", CategoricalDistribution(["2", "4", "8"])),
        ("x=choice(a,b)", CategoricalDistribution(["a", "b"])),
    ],
)
def test_sweeps_are_converted_to_distributions(override, expected):
    assert distribution(OverridesParser.create().parse_override(override)) == expected


@pytest.fixture
def search(tiny) -> list[str]:
    fixed = [override for override in tiny if not override.startswith(("model.dropout", "trainer.max_steps"))]
    fixed += ["callbacks.samples.max_new_tokens=0", "trainer.max_steps=60", "trainer.log_every_n_steps=1"]
    return [*fixed, "model.dropout=interval(0.0,0.5)", "optimizer.lr=tag(log,interval(1e-4,1e-1))"]


def study(folder) -> optuna.Study:
    (database,) = folder.rglob("search.db")
    return optuna.load_study(study_name=None, storage=f"sqlite:///{database}")


@pytest.mark.slow
def test_a_search_killed_in_its_third_trial_is_resumed(search, tmp_path):
    overrides = [*search, "hydra/sweeper=random", "hydra.sweeper.n_trials=6"]
    sweep = Sweep(tmp_path, *overrides)
    while len(finished(tmp_path)) < 2 or steps_done(tmp_path) < 2 * 60 + 10:
        assert sweep.process.poll() is None, sweep.output
    sweep.kill()
    before = {name: modification_times(run) for name, run in finished(tmp_path).items()}
    assert len(before) == 2
    resumed = Sweep(tmp_path, *overrides)
    assert resumed.wait() == 0, resumed.output
    trials = study(tmp_path).trials
    interrupted = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert [trial.number for trial in interrupted] == [2]
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 6
    assert trials[3].params == interrupted[0].params, "replaced by a trial with the same values"
    runs = finished(tmp_path)
    assert len(runs) == 6
    assert {name: modification_times(runs[name]) for name in before} == before
    assert len({tuple(trial.params.values()) for trial in trials}) == 6, "all draws differ"
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            (run,) = [run for run in runs.values() if str(run) == trial.user_attrs["home"]]
            assert run_artifacts.metrics(run)["val_loss"] == trial.value
    assert "6 trials" in resumed.output and "best trial: " in resumed.output
    assert "sample.py run=" in resumed.output, "the best run"


@pytest.mark.slow
def test_halving_prunes_trials_and_counts_them(search, tmp_path):
    overrides = [*search, "hydra/sweeper=halving", "hydra.sweeper.n_trials=6", "trainer.val_check_interval=10"]
    outcome = process(tmp_path, "train", "-m", *overrides, timeout=300)
    assert outcome.code == 0, outcome.err
    states = [trial.state for trial in study(tmp_path).trials]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    pruned = [
        file.parent for file in tmp_path.rglob("status.json") if run_artifacts.status(file.parent)["state"] == "pruned"
    ]
    assert len(pruned) == states.count(TrialState.PRUNED)
    for run in pruned:
        assert run_artifacts.status(run)["step"] < 60
        assert not (run / "metrics.json").exists()
    repeated = process(tmp_path, "train", "-m", *overrides)
    assert repeated.code == 0, repeated.err
    assert len(study(tmp_path).trials) == 6, "no more trials"


@pytest.mark.slow
def test_each_value_is_tried_once_and_a_different_search_is_a_different_study(search, tmp_path):
    fixed = [override for override in search if "interval" not in override and not override.startswith("model.n_layer")]
    overrides = [*fixed, "hydra/sweeper=random", "hydra.sweeper.n_trials=5", "trainer.max_steps=10"]
    outcome = process(tmp_path, "train", "-m", *overrides, "model.n_layer=1,2")
    assert outcome.code == 0, outcome.err
    assert len(finished(tmp_path)) == 2
    assert "2 trials" in outcome.err and "the search space is exhausted" in outcome.err
    outcome = process(tmp_path, "train", "-m", *overrides, "model.n_layer=1", "seed=5,6,7", "hydra.sweeper.n_trials=1")
    assert outcome.code == 0, outcome.err
    assert len(finished(tmp_path)) == 3
    assert "seed=" in outcome.err[outcome.err.index("best trial: ") :]


@pytest.mark.slow
def test_a_refused_first_trial_is_a_user_error_and_does_not_count(search, tmp_path, text_file):
    overrides = [override for override in search if not override.startswith("data.path=")]
    overrides += ["hydra/sweeper=random", "hydra.sweeper.n_trials=1"]
    outcome = process(tmp_path, "train", "-m", *overrides, "data.path=nowhere.txt")
    assert outcome.code == 2
    assert "nowhere.txt does not exist" in outcome.err
    (tmp_path / "nowhere.txt").write_text(text_file.read_text())
    outcome = process(tmp_path, "train", "-m", *overrides, "data.path=nowhere.txt")
    assert outcome.code == 0, outcome.err
    assert "1 trials, 1 of them completed" in outcome.err


@pytest.mark.slow
def test_an_empty_search_space_is_a_user_error(tiny, tmp_path):
    outcome = process(tmp_path, "train", "-m", *tiny, "hydra/sweeper=tpe")
    assert outcome.code == 2
    assert "the search space is empty" in outcome.err
