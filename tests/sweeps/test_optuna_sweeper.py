"""Search by Optuna: what a sweep on the command line means to it, and a study that goes on after kill -9."""

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from hydra_plugins.chargpt_optuna_sweeper import distribution
from tests.conftest import process
from tests.sweeps.processes import Sweep, finished, steps_done, touched
from tests.training import run_artifacts


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("x=interval(0.0,0.3)", FloatDistribution(0.0, 0.3)),
        ("x=int(interval(1,5))", IntDistribution(1, 5)),
        ("x=tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("x=range(2,9,step=2)", IntDistribution(2, 8, step=2)),
        ("x=2,4,8", CategoricalDistribution(["2", "4", "8"])),
        ("x=choice(a,b)", CategoricalDistribution(["a", "b"])),
    ],
)
def test_what_is_searched(word, meant):
    assert distribution(OverridesParser.create().parse_override(word)) == meant


@pytest.fixture
def search(tiny) -> list[str]:
    some = [word for word in tiny if not word.startswith(("model.dropout", "trainer.max_steps"))]
    some += ["callbacks.samples.max_new_tokens=0", "trainer.max_steps=60", "trainer.log_every_n_steps=1"]
    return [*some, "model.dropout=interval(0.0,0.5)", "optimizer.lr=tag(log,interval(1e-4,1e-1))"]


def study(folder) -> optuna.Study:
    (database,) = folder.rglob("search.db")
    return optuna.load_study(study_name=None, storage=f"sqlite:///{database}")


@pytest.mark.slow
def test_a_search_of_6_that_is_killed_in_the_third_goes_on_to_6(search, tmp_path):
    words = [*search, "hydra/sweeper=random", "hydra.sweeper.n_trials=6"]
    sweep = Sweep(tmp_path, *words)
    while len(finished(tmp_path)) < 2 or steps_done(tmp_path) < 2 * 60 + 10:
        assert sweep.process.poll() is None, sweep.output
    sweep.kill()
    before = {name: touched(run) for name, run in finished(tmp_path).items()}
    assert len(before) == 2
    again = Sweep(tmp_path, *words)
    assert again.wait() == 0, again.output
    trials = study(tmp_path).trials
    cut = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert [trial.number for trial in cut] == [2]
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 6
    assert trials[3].params == cut[0].params, "made up for with the same values"
    runs = finished(tmp_path)
    assert len(runs) == 6
    assert {name: touched(runs[name]) for name in before} == before
    assert len({tuple(trial.params.values()) for trial in trials}) == 6, "no draw comes twice"
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            (run,) = [run for run in runs.values() if str(run) == trial.user_attrs["home"]]
            assert run_artifacts.metrics(run)["val_loss"] == trial.value
    assert "6 trials" in again.output and "the best: " in again.output


@pytest.mark.slow
def test_halving_stops_the_worse_trials_early_and_counts_them(search, tmp_path):
    words = [*search, "hydra/sweeper=halving", "hydra.sweeper.n_trials=6", "trainer.val_check_interval=10"]
    outcome = process(tmp_path, "train", "-m", *words, timeout=300)
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
    again = process(tmp_path, "train", "-m", *words)
    assert again.code == 0, again.err
    assert len(study(tmp_path).trials) == 6, "nothing is left to do"


@pytest.mark.slow
def test_each_value_is_tried_once_and_another_search_is_another_study(search, tmp_path):
    some = [word for word in search if "interval" not in word and not word.startswith("model.n_layer")]
    words = [*some, "hydra/sweeper=random", "hydra.sweeper.n_trials=5", "trainer.max_steps=10"]
    outcome = process(tmp_path, "train", "-m", *words, "model.n_layer=1,2")
    assert outcome.code == 0, outcome.err
    assert len(finished(tmp_path)) == 2
    assert "2 trials" in outcome.err and "no values left" in outcome.err
    outcome = process(tmp_path, "train", "-m", *words, "model.n_layer=1", "seed=5,6,7", "hydra.sweeper.n_trials=1")
    assert outcome.code == 0, outcome.err
    assert len(finished(tmp_path)) == 3
    assert "seed=" in outcome.err[outcome.err.index("the best: ") :]


@pytest.mark.slow
def test_what_cannot_be_trained_at_all_is_a_mistake_and_uses_up_no_trial(search, tmp_path, text_file):
    words = [word for word in search if not word.startswith("data.path=")]
    words += ["hydra/sweeper=random", "hydra.sweeper.n_trials=1"]
    outcome = process(tmp_path, "train", "-m", *words, "data.path=nowhere.txt")
    assert outcome.code == 2
    assert "nowhere.txt does not exist" in outcome.err
    (tmp_path / "nowhere.txt").write_text(text_file.read_text())
    outcome = process(tmp_path, "train", "-m", *words, "data.path=nowhere.txt")
    assert outcome.code == 0, outcome.err
    assert "1 trials, 1 of them run to their end" in outcome.err


@pytest.mark.slow
def test_a_search_for_nothing_is_a_mistake(tiny, tmp_path):
    outcome = process(tmp_path, "train", "-m", *tiny, "hydra/sweeper=tpe")
    assert outcome.code == 2
    assert "something to search" in outcome.err
