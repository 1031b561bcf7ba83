"""sweep.csv: one row per run, with all digits."""

import csv

from chargpt.runs.record import read_run
from chargpt.sweeps.csv_report import table_rows, write_csv
from chargpt.sweeps.ranking import rank_by_monitor


def rows(folder, *paths) -> list[dict[str, str]]:
    rankings = rank_by_monitor([read_run(path) for path in paths])
    write_csv(table_rows(rankings, folder), folder / "sweep.csv")
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_run_has_a_row_with_all_metrics_and_all_digits(run, tmp_path):
    loss = 2.0 / 3.0
    paths = [run("a,b=1", "model.n_layer=4", "optimizer.lr=0.0001234567890123", "seed=2", loss=loss, odd=[1, None])]
    paths += [run("b", "seed=1", loss=3.0), run("c", "seed=2", loss=3.1)]
    best, *others = rows(tmp_path, *paths)
    assert (best["run"], best["state"], best["reason"]) == ("outputs/a,b=1", "finished", "")
    assert (best["model.n_layer"], best["seed"], best["odd"]) == ("4", "2", "[1,null]")
    assert float(best["optimizer.lr"]) == 0.0001234567890123
    assert float(best["val_loss"]) == loss
    assert float(best["training_flops"]) == 30_000 * 20 * 4 * 16
    assert [(row["seed"], row["odd"]) for row in others] == [("1", ""), ("2", "")]
    assert set(read_run(paths[0]).metrics) < set(best)


def test_an_unfinished_run_has_a_row(run, tmp_path):
    reason = 'a "quoted", reason'
    failed = run("a", state="failed", reason=reason, history=[(5, 3.0), (10, 2.5)])
    (row,) = rows(tmp_path, failed)
    assert (row["state"], row["reason"], row["seed"]) == ("failed", reason, "1337")
    assert (row["last_step"], row["last_val_loss"], row["training_flops"]) == ("10", "2.5", "")


def test_the_rows_are_grouped_by_monitor_and_contain_the_scores(run, accurate, tmp_path):
    paths = [run("old", loss=2.0), accurate("low", 0.5), accurate("high", 0.75, "model.n_layer=4")]
    paths += [run("new", "model.n_layer=4", loss=1.9, monitor="val_loss", mode="min", score=1.9)]
    paths += [accurate("failed", None, "model.n_layer=8", history=[(5, 0.25)])]
    read = rows(tmp_path, *paths)
    assert [row["run"] for row in read] == [f"outputs/{name}" for name in ("new", "old", "high", "low", "failed")]
    assert [(row["monitor"], row["mode"], row["score"]) for row in read] == [
        ("val_loss", "min", "1.9"),
        ("val_loss", "min", "2.0"),
        ("accuracy", "max", "0.75"),
        ("accuracy", "max", "0.5"),
        ("accuracy", "max", ""),
    ]
    failed = read[-1]
    assert (failed["last_step"], failed["last_accuracy"], failed["last_val_loss"]) == ("5", "0.25", "")
