"""The table on the terminal: its columns and rows, and that no cell is truncated."""

from functools import partial

import pytest
from rich.console import Console

from chargpt.runs.record import read_run
from chargpt.sweeps import table
from chargpt.sweeps.ranking import rank
from tests.sweeps.conftest import WORD_PIECES


@pytest.fixture
def shown(capsys, tmp_path, monkeypatch):
    """The lines of the table of these runs, optionally on a terminal with this many columns."""

    def shown(*paths, columns: int | None = None) -> list[str]:
        if columns:
            console = partial(Console, force_terminal=True, width=columns, color_system=None)
            monkeypatch.setattr(table, "_Console", console)
        table.print_ranking(rank([read_run(path) for path in paths]), tmp_path, "sweep.csv")
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return shown


def test_each_setting_has_a_line_with_its_metrics_best_first(run, shown):
    paths = [
        run(f"{n}_{seed}", f"model.n_layer={n}", f"seed={seed}", loss=4 / n + seed / 100, parameters=5_000_000 * n)
        for n in (1, 2)
        for seed in (1, 2)
    ]
    head, _, best, other = shown(*paths)
    assert " ".join(head.split()) == "n_layer val loss seeds bits/char parameters FLOPs seconds tokens/s state"
    assert " ".join(best.split()) == "2 2.0150 ± 0.0071 2 2.907 10,000,000 3.8e7 12 1,000 finished"
    assert other.split()[:2] == ["1", "4.0150"]


def test_scores_of_a_part_of_the_validation_split_are_marked(run, shown):
    complete = run("a", "model.n_layer=1", loss=2.0)
    _, _, best, other, note = shown(complete, run("b", "model.n_layer=2", loss=1.5, partial_validation=True))
    assert best.split()[:2] == ["2", "1.5000*"]
    assert other.split()[:2] == ["1", "2.0000"]
    assert note.startswith("* on a part of the validation split")
    assert len(shown(complete)) == 3


def test_a_run_without_validation_comes_after_those_with_a_score(run, shown):
    nothing = run("b", "model.n_layer=2", val_bpc=None, score=None)
    _, _, best, other, reason = shown(nothing, run("a", "model.n_layer=1", loss=2.0))
    assert best.split()[0] == "1"
    assert other.split()[0] == "2"
    assert other.endswith("finished")
    assert "no validation (trainer.limit_val_batches=0)" in reason


def test_an_unfinished_run_shows_its_last_score_and_its_reason(run, shown):
    failed = [
        run(f"{n}", f"model.n_layer={n}", state="failed", reason="RuntimeError: [boom]", history=[(10, 3.25)])
        for n in (4, 8)
    ]
    _, _, best, *others, reason = shown(run("a", loss=2.0), *failed)
    assert best.endswith("finished")
    assert all("3.2500 at 10" in line and line.endswith("failed") for line in others)
    assert reason == "failed: RuntimeError: [boom]  (outputs/4 and 1 more)"


def test_no_number_is_truncated_without_a_terminal(run, shown):
    overrides = [f"model.{key}=100000" for key in ("n_layer", "n_head", "block_size")]
    overrides += ["trainer.max_steps=1000000", "trainer.accumulate_grad_batches=64", "data.batch_size=4096"]
    lines = shown(run("a", loss=2.0), run("b", *overrides, loss=1.0, parameters=123_456_789_012))
    assert len(lines[0]) > 100
    assert "123,456,789,012" in lines[2]
    assert not any("…" in line for line in lines)
    assert len(lines) == 4


def test_on_a_narrow_terminal_columns_are_left_out_and_named(run, shown):
    paths = [run(f"{n}", f"model.n_layer={n}", f"model.dropout=0.{n}", loss=2.0 + n) for n in (1, 2)]
    lines = shown(*paths, columns=66)
    assert max(map(len, lines[:4])) <= 66
    assert " ".join(lines[0].split()) == "n_layer dropout val loss bits/char parameters state"
    assert lines[4] == "more columns in sweep.csv: FLOPs, seconds, tokens/s"


def test_runs_without_differing_settings_are_shown_by_name(run, shown):
    assert shown(run("+lecture=head,seed=1", loss=2.0))[2].startswith("+lecture=head,seed=1 ")


def test_runs_that_differ_only_in_the_seed_are_labeled_by_their_settings(run, shown):
    overrides = ["model=gpt_nano", "model.n_layer=2", "trainer.max_steps=9", "+optimizer.lr=0.001"]
    paths = [run(f"seed={n}", *overrides, f"seed={n}", loss=2.0 + n) for n in (1, 2)]
    head, _, best = shown(*paths)
    assert head.split()[:4] == ["settings", "val", "loss", "seeds"]
    assert best.startswith("model=gpt_nano n_layer=2 lr=0.001 ")
    paths = [run(f"default,seed={n}", f"seed={n}", "model.n_head=4", loss=2.0) for n in (1, 2)]
    assert shown(*paths)[2].startswith("n_head=4 ")
    paths = [run(f"nothing,seed={n}", f"seed={n}", loss=2.0) for n in (1, 2)]
    assert shown(*paths)[2].startswith("model=gpt_nano ")


@pytest.fixture
def mixed(run):
    """Steps of the lecture, a sweep and the default model: they differ in many settings."""
    paths = []
    for n, name in enumerate(["bigram", "head", "multi_head"]):
        choices = {"lecture": name, "model": "bigram" if name == "bigram" else "gpt_small", "recipe": "lecture"}
        choices |= {"model/attention": f"attention_{n}", "model/norm": f"norm_{n}"}
        paths.append(run(f"lecture={name}", f"lecture={name}", loss=2.5 - n / 10, choices=choices))
    for layers in (2, 4):
        overrides = ["model=gpt_nano", f"model.n_layer={layers}", "optimizer.lr=0.01", "model.dropout=0.25"]
        paths.append(run(f"n_layer={layers}", *overrides, loss=2.0 + layers / 10))
    paths.append(run("default", loss=1.5, choices={"model": "gpt_modern", "recipe": "gpt_modern"}))
    return paths


def test_mixed_runs_are_told_apart_on_a_terminal_of_80_columns(mixed, shown):
    lines = shown(*mixed, columns=80)
    assert max(map(len, lines)) <= 80
    rows = lines[2 : 2 + len(mixed)]
    assert [row.split("  ")[0] for row in rows] == [
        "model=gpt_modern",
        "model=gpt_nano n_layer=2 dropout=0.25 lr=0.01",
        "lecture=multi_head",
        "lecture=head",
        "model=gpt_nano n_layer=4 dropout=0.25 lr=0.01",
        "lecture=bigram",
    ]
    assert all(row.endswith("finished") for row in rows)


def test_on_a_terminal_that_is_too_narrow_for_the_labels_they_are_wrapped(mixed, shown):
    lines = shown(*mixed, columns=50)
    assert max(map(len, lines)) <= 50
    assert "".join(lines).count("finished") == len(mixed)


def test_rows_with_equal_labels_show_all_settings_that_differ(run, shown):
    """Runs of different versions of a config: no command line contains the difference."""
    paths = [run(f"{n}", "model=gpt_nano", loss=n, settings={"model.n_layer": n}) for n in (1, 2)]
    overrides = [f"model.{key}=1000000" for key in ("block_size", "n_head")]
    overrides += [f"optimizer.lr={10.0**-9}", "data.batch_size=100000000", "model.dropout=0.123456"]
    lines = shown(*paths, run("3", *overrides, loss=3.0), columns=60)
    assert any("n_layer=1" in line for line in lines)
    assert any("n_layer=2" in line for line in lines)


def test_another_monitor_has_its_name_as_header_best_first(accurate, shown):
    paths = [accurate(f"{n}", n / 10, f"model.n_layer={n}", loss=n) for n in (1, 2)]
    paths.append(accurate("failed", None, "model.n_layer=3", history=[(5, 0.9)]))
    head, _, best, other, failed = shown(*paths)
    assert head.split()[:4] == ["n_layer", "accuracy", "val", "loss"]
    assert best.split()[:3] == ["2", "0.2000", "2.0000"]
    assert other.split()[:3] == ["1", "0.1000", "1.0000"]
    assert failed.split()[:4] == ["3", "0.9000", "at", "5"]


def test_runs_with_different_tokenizers_show_bits_per_character(run, shown):
    paths = [run("characters", loss=1.5, val_bpc=2.16), run("pieces", loss=4.0, val_bpc=1.9, settings=WORD_PIECES)]
    head, _, best, other, note = shown(*paths)
    assert " ".join(head.split()).startswith("_target_ size val_bpc val loss parameters")
    assert best.split()[:4] == ["WordPieces", "512", "1.9000", "4.0000"]
    assert other.split()[:2] == ["2.1600", "1.5000"]
    assert note == "the tokenizers differ: ranked by val_bpc, not by validation loss"
