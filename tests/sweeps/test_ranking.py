"""The ranking: one row per setting, best first, unfinished runs last, each monitor separately."""

from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.runs.record import RunRecord, read_run
from chargpt.runs.score import BETWEEN_TOKENIZERS, Monitor
from chargpt.sweeps.ranking import rank, rank_by_monitor
from tests.sweeps.conftest import WORD_PIECES


def ranked(*paths):
    return rank([read_run(path) for path in paths])


def test_the_best_comes_first_and_the_unfinished_last(run):
    paths = [run(f"{n}", f"model.n_layer={n}", loss=loss) for n, loss in ((1, 2.2), (2, 2.0), (3, 2.1))]
    paths.insert(0, run("4", "model.n_layer=4", state="failed", history=[(10, 1.0)]))
    ranking = ranked(*paths)
    assert [row.values["model.n_layer"] for row in ranking.rows] == [2, 3, 1, 4]
    assert [row.state for row in ranking.rows] == [*["finished"] * 3, "failed"]


def test_runs_that_differ_only_in_their_seed_are_one_row(run):
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
    assert best.mean(lambda run: run.metric("parameters")) == 5000


def test_a_row_averages_the_finished_runs_and_counts_the_others(run):
    paths = [run("1", "seed=1", loss=2.0), run("2", "seed=2", loss=3.0), run("3", "seed=3", state="failed")]
    (row,) = ranked(*paths).rows
    assert (row.score, row.state) == (2.5, "finished, 1 failed")


def test_a_seed_that_is_not_averaged_over_is_a_key(run):
    ranking = ranked(*(run(f"{n}", f"model.n_layer={n}", f"seed={n}", loss=2.0) for n in (1, 2)))
    assert ranking.keys == ["model.n_layer", "seed"]
    assert not ranking.seeded
    assert {row.values["seed"] for row in ranking.rows} == {1, 2}


def test_0_and_0_0_are_the_same_value(run):
    paths = [run("a", "model.dropout=0", "seed=1", loss=2.0), run("b", "model.dropout=0.0", "seed=2", loss=2.0)]
    paths.append(run("c", "model.dropout=0.1", loss=2.0))
    assert sorted(len(row.runs) for row in ranked(*paths).rows) == [1, 2]


def test_a_run_without_a_config_has_its_own_row(run):
    paths = [run(f"{seed}", f"seed={seed}", loss=2.0) for seed in (1, 2, 3, 4)]
    for path in paths[2:]:
        (path / ".hydra" / "config.yaml").unlink()
    assert sorted(len(row.runs) for row in ranked(*paths).rows) == [1, 1, 2]


def test_if_higher_is_better_the_highest_comes_first_also_among_unfinished_runs(accurate):
    paths = [
        accurate(f"{n}_{seed}", score + seed / 100, f"model.n_layer={n}", f"seed={seed}", loss=3.0 + score)
        for n, score in ((1, 0.5), (2, 0.7), (3, 0.6))
        for seed in (1, 2)
    ]
    paths += [accurate(f"{n}", None, f"model.n_layer={n}", history=[(5, n / 10)]) for n in (8, 9)]
    ranking = ranked(*paths)
    assert [row.values["model.n_layer"] for row in ranking.rows] == [2, 3, 1, 9, 8]
    assert ranking.rows[0].score == pytest.approx(0.715)
    assert [run.score for run in ranking.rows[0].runs] == [pytest.approx(0.72), pytest.approx(0.71)]


def test_each_monitor_has_a_ranking_and_unreadable_runs_are_added_to_the_first(run, accurate):
    unreadable = run("c", state="failed")
    (unreadable / ".hydra" / "config.yaml").unlink()
    paths = [accurate("a", 0.5), run("b", loss=2.0), unreadable, accurate("d", 0.6, "model.n_layer=4")]
    rankings = rank_by_monitor([read_run(path) for path in paths])
    assert [ranking.run_monitor for ranking in rankings] == [Monitor("accuracy", "max"), Monitor()]
    assert [[run.path.name for run in ranking.runs] for ranking in rankings] == [["d", "a", "c"], ["b"]]
    with pytest.raises(ValueError, match="unpack"):
        ranked(*paths)


@pytest.mark.parametrize("monitor", ["val_loss", "val_perplexity"])
def test_runs_with_different_tokenizers_are_ranked_by_bits_per_character(run, monitor):
    pieces = {"settings": WORD_PIECES | {"monitor": monitor}, "monitor": monitor}
    paths = [
        run("characters", loss=1.5, val_bpc=2.16, monitor=monitor, score=1.5),
        run("pieces", loss=4.0, val_bpc=1.9, score=4.0, **pieces),
        run("older", "model.n_layer=8", loss=1.0, val_bpc=None, monitor=monitor, score=1.0),
        run("failed", "model.n_layer=3", state="failed", history=[(5, 2.0)], column="val_bpc", **pieces),
        run("failed early", "model.n_layer=4", state="failed", history=[(5, 0.1)], **pieces),
    ]
    ranking = rank([read_run(path) for path in paths])
    assert ranking.monitor == BETWEEN_TOKENIZERS
    assert [run.path.name for run in ranking.runs][:3] == ["pieces", "characters", "older"]
    assert [row.last_values for row in ranking.rows][-2:] == [[(5, 2.0)], []]
    assert ranked(paths[0], paths[2]).monitor.name == monitor, "the same tokenizer"
    assert ranked(paths[1]).monitor.name == monitor


SCORES = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.sampled_from("ab")), min_size=1, max_size=8)


@given(SCORES, st.sampled_from(["min", "max"]))
def test_rows_are_sorted_by_the_ranking_metric(runs, mode):
    monitor = Monitor("val_loss" if mode == "min" else "accuracy", mode)
    recorded = []
    for n, (score, bits, tokenizer) in enumerate(runs):
        metrics = {"monitor": monitor.name, "mode": mode, "score": score, "val_bpc": bits}
        config = {"seed": 1, "model": {"n_layer": n}, "data": {"tokenizer": {"name": tokenizer}}}
        recorded.append(RunRecord(Path(f"{n}"), "finished", metrics=metrics, config=config, monitor=monitor))
    by_bits = mode == "min" and len({tokenizer for *_, tokenizer in runs}) > 1
    expected = sorted((bits if by_bits else score for score, bits, _ in runs), reverse=mode == "max")
    assert [row.score for row in rank(recorded).rows] == expected
