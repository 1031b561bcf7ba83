"""The output of a finished run: the metrics of metrics.json, and commands that can be pasted into a shell."""

import logging
import re
import shlex
import shutil
from pathlib import Path

import pytest

from chargpt.training.report import format_count, loss_rows
from tests.conftest import REPO
from tests.training import run_artifacts


@pytest.fixture(scope="module")
def trained() -> dict[str, Path | str]:
    """The run and its output, after it has been trained once."""
    return {}


def rows(output: str) -> dict[str, str]:
    """The labelled lines of an output."""
    return dict(re.findall(r"^ *(\w+)  (\S.*)$", output, re.MULTILINE))


@pytest.fixture
def results(trained, run_cli, tiny, tmp_path: Path) -> dict[str, str]:
    """The last lines of a run by their labels. The run is in `tmp_path`, in a directory with a space in its name."""
    run = tmp_path / "my runs" / "first"
    if trained:
        shutil.copytree(trained["run"], run)
    else:
        outcome = run_cli("train", *tiny, "trainer.max_steps=2", 'hydra.run.dir="my runs/first"')
        assert outcome.code == 0, outcome.err
        trained |= {"run": run, "out": outcome.out}
    return rows(trained["out"])


def test_the_printed_metrics_are_those_of_metrics_json(results, tmp_path: Path):
    metrics = run_artifacts.metrics(tmp_path / "my runs" / "first")
    assert results["loss"].startswith(f"{metrics['val_loss']:.4f} nats")
    assert "best" not in results, "the best step is the last one"
    assert f"{metrics['val_bpc']:.3f} bits" in results["loss"]
    assert "2 steps" in results["time"]
    assert f"{metrics['tokens_per_second']:,.0f} tokens/s" in results["time"]


def test_the_printed_sample_command_works(results, run_cli):
    """The vocabulary lacks letters of the default prompt."""
    _, script, *overrides = shlex.split(results["sample"])
    assert Path(script) == REPO / "sample.py"
    outcome = run_cli("sample", *overrides, "max_new_tokens=5")
    assert outcome.code == 0, outcome.err


def test_the_printed_resume_command_works(results, run_cli, tmp_path: Path):
    _, script, *overrides = shlex.split(results["resume"])
    assert Path(script) == REPO / "train.py"
    outcome = run_cli("train", *overrides)
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(tmp_path / "my runs" / "first")["steps"] == 4


def test_the_printed_tensorboard_command_has_a_logdir_that_contains_the_run(results, tmp_path: Path):
    *_, option, directory = shlex.split(results["curves"])
    assert option == "--logdir"
    assert list((tmp_path / directory).rglob("events.out.tfevents.*"))


def test_the_proposed_prompt_is_the_first_word_of_the_text(results, text):
    assert shlex.split(results["sample"])[-1] == f"prompt={text.split()[0]}"


def test_lines_fit_in_80_columns_except_commands_and_the_sample(run_cli, tiny, caplog, tmp_path):
    """The lines of a resumed run whose best step is not the last, and that stops early."""
    caplog.set_level(logging.INFO)
    stopping = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2", "trainer.val_check_interval=1"]
    diverging = ["optimizer.lr=100", "hydra.run.dir=run", "data.max_validation_tokens=100"]
    assert run_cli("train", *tiny, *stopping, *diverging, "callbacks.samples.max_new_tokens=0").code == 0
    first = run_artifacts.metrics(tmp_path / "run")
    assert "resume" not in caplog.text
    outcome = run_cli("train", "resume=run", stopping[0], "callbacks.early_stopping.patience=3")
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert metrics["best_step"] < first["steps"] < metrics["steps"] < 20
    assert f"resume  from step {first['steps']} (last.ckpt)" in caplog.text
    printed = {name: line for name, line in rows(outcome.out).items() if name not in ("sample", "curves", "resume")}
    assert printed["best"].startswith(f"step {metrics['best_step']} of {metrics['steps']}; at the last step ")
    assert printed["best"].endswith(f"{metrics['final_val_loss']:.4f}")
    assert printed["stop"] == "early: val_loss did not improve in 3 validations"
    lines = [f"{name:>6}  {line}" for name, line in printed.items()]
    lines += [record.message for record in caplog.records if record.name.startswith("chargpt")]
    assert len(lines) > 12
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize(
    ("last", "train_loss", "overfitted"),
    [(1.51, 1.2, False), (1.9, 1.2, True), (1.9, 0.0, True), (1.9, 1.8, False), (1.9, None, False)],
)
def test_overfitting_is_a_validation_loss_that_rises_while_the_training_loss_is_lower(last, train_loss, overfitted):
    metrics = {"val_loss": 1.5, "val_bpc": 2.2, "final_val_loss": last, "best_step": 175, "steps": 700}
    row = loss_rows(metrics, train_loss)["best"]
    assert row == f"step 175 of 700; at the last step {last:.4f}{' (overfitting: fewer steps)' if overfitted else ''}"


def test_the_header_names_the_model_whatever_the_name_of_the_run(run_cli, tiny, caplog):
    caplog.set_level(logging.INFO)
    assert run_cli("train", *tiny, "name=my run", "trainer.max_steps=1", "logger=none").code == 0
    assert " model  gpt_nano: 6,992 parameters" in caplog.text


@pytest.mark.slow
def test_the_lectures_last_model_on_a_cpu_is_warned_about(run_cli, tiny, caplog):
    fixed = [override for override in tiny if override != "model=gpt_nano"]
    warning = "lecture=scaled_up takes most of a day on a CPU"
    outcome = run_cli("train", *fixed, "lecture=scaled_up", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert caplog.text.count(warning) == 1
    caplog.clear()
    assert run_cli("train", *fixed, "lecture=scaled_up_cpu", "hydra.run.dir=laptop").code == 0
    assert warning not in caplog.text


def test_large_counts_are_formatted_in_millions():
    counts = (0, 999, 12_345, 99_999, 100_000, 12_345_678)
    assert [format_count(n) for n in counts] == ["0", "999", "12,345", "99,999", "0.10M", "12.35M"]
