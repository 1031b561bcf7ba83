"""What a run says at its end: the figures of metrics.json, and commands that can be typed as they stand."""

import shlex
import shutil
from pathlib import Path

import pytest

from chargpt.training.report import format_count
from tests.training import run_artifacts


@pytest.fixture(scope="module")
def ended() -> dict[str, Path | str]:
    """The run and its words, once it was trained."""
    return {}


@pytest.fixture
def end(ended, run_cli, tiny, tmp_path: Path) -> dict[str, str]:
    """The last lines of a run in a folder with a blank in its name, by their first words; the run lies here."""
    place = tmp_path / "my runs" / "first"
    if ended:
        shutil.copytree(ended["run"], place)
    else:
        outcome = run_cli("train", *tiny, "trainer.max_steps=2", 'hydra.run.dir="my runs/first"')
        assert outcome.code == 0, outcome.err
        ended |= {"run": place, "out": outcome.out}
    lines = ended["out"].splitlines()[-6:]
    return {line[:7].strip(): line[9:] for line in lines}


def test_the_figures_are_those_of_metrics_json(end, tmp_path: Path):
    metrics = run_artifacts.metrics(tmp_path / "my runs" / "first")
    assert end["loss"].startswith(f"{metrics['val_loss']:.4f} nats")
    assert f"(step {metrics['best_step']})" in end["loss"]
    assert f"{metrics['val_bpc']:.3f} bits" in end["loss"]
    assert "2 steps" in end["time"]
    assert f"{metrics['tokens_per_second']:,.0f} tokens/s" in end["time"]


def test_the_command_for_a_sample_can_be_typed_as_it_stands(end, run_cli):
    """Also after a text that has no capital R."""
    _, script, *words = shlex.split(end["sample"])
    assert script == "sample.py"
    outcome = run_cli("sample", *words, "max_new_tokens=5")
    assert outcome.code == 0, outcome.err


def test_the_command_to_go_on_can_be_typed_as_it_stands(end, run_cli, tmp_path: Path):
    _, script, *words = shlex.split(end["go on"])
    assert script == "train.py"
    outcome = run_cli("train", *words)
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(tmp_path / "my runs" / "first")["steps"] == 4


def test_the_command_to_look_names_a_folder_that_holds_the_run(end, tmp_path: Path):
    *_, option, folder = shlex.split(end["look"])
    assert option == "--logdir"
    assert list((tmp_path / folder).rglob("events.out.tfevents.*"))


def test_big_counts_are_told_in_millions():
    counts = (0, 999, 12_345, 99_999, 100_000, 12_345_678)
    assert [format_count(n) for n in counts] == ["0", "999", "12,345", "99,999", "0.10M", "12.35M"]
