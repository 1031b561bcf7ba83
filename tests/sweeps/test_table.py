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
        table.print_ranking(rank([read_run(path) for path in paths]), tmp_path)
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
    assert lines[4] == "terminal too narrow for FLOPs, seconds, tokens/s: see sweep.csv"


def test_runs_without_differing_settings_are_shown_by_name(run, shown):
    assert shown(run("+lecture=head,seed=1", loss=2.0))[2].startswith("+lecture=head,seed=1 ")


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
