"""Rows of the comparison: seeds together, the best first, the unfinished last."""

from statistics import mean

import pytest

from chargpt.sweeps.ranking import rank
from chargpt.sweeps.recorded import read_any


def ranked(*paths):
    return rank([read_any(path) for path in paths])


def test_the_best_comes_first_and_the_unfinished_last(run):
    paths = [run(f"{n}", f"model.n_layer={n}", loss=loss) for n, loss in ((1, 2.2), (2, 2.0), (3, 2.1))]
    paths.insert(0, run("4", "model.n_layer=4", state="failed", history=[(10, 1.0)]))
    ranking = ranked(*paths)
    assert [row.values["model.n_layer"] for row in ranking.rows] == [2, 3, 1, 4]
    assert [row.state for row in ranking.rows] == [*["finished"] * 3, "failed"]


def test_runs_that_differ_in_their_seed_are_one_row(run):
    paths = [
        run(f"{n}_{seed}", f"model.n_layer={n}", f"seed={seed}", loss=4 / n + seed / 100)
        for n in (1, 2)
        for seed in (1, 2, 3)
    ]
    ranking = ranked(*paths)
    assert ranking.keys == ["model.n_layer"]
    assert ranking.seeded
    best, other = ranking.rows
    assert sorted(best.scores) == pytest.approx([2.01, 2.02, 2.03])
    assert other.score == pytest.approx(mean([4.01, 4.02, 4.03]))
    assert best.mean(lambda run: run.figure("parameters")) == 5000


def test_a_row_counts_what_did_not_finish_and_averages_the_rest(run):
    paths = [run("1", "seed=1", loss=2.0), run("2", "seed=2", loss=3.0), run("3", "seed=3", state="failed")]
    (row,) = ranked(*paths).rows
    assert (row.score, row.state) == (2.5, "finished, 1 failed")


def test_a_seed_that_nothing_averages_over_is_a_key(run):
    ranking = ranked(*(run(f"{n}", f"model.n_layer={n}", f"seed={n}", loss=2.0) for n in (1, 2)))
    assert ranking.keys == ["model.n_layer", "seed"]
    assert not ranking.seeded
    assert {row.values["seed"] for row in ranking.rows} == {1, 2}


def test_zero_is_zero_however_it_was_typed(run):
    paths = [run("a", "model.dropout=0", "seed=1", loss=2.0), run("b", "model.dropout=0.0", "seed=2", loss=2.0)]
    paths.append(run("c", "model.dropout=0.1", loss=2.0))
    assert sorted(len(row.runs) for row in ranked(*paths).rows) == [1, 2]


def test_a_run_without_a_config_is_averaged_with_none(run):
    paths = [run(f"{seed}", f"seed={seed}", loss=2.0) for seed in (1, 2, 3, 4)]
    for path in paths[2:]:
        (path / ".hydra" / "config.yaml").unlink()
    assert sorted(len(row.runs) for row in ranked(*paths).rows) == [1, 1, 2]
