"""Progress output: a progress bar in a terminal, plain lines in files and pipes."""

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.conftest import REPO, process
from tests.training.run_artifacts import history

STEPS = ["trainer.max_steps=400", "trainer.val_check_interval=200", "trainer.log_every_n_steps=10"]


def test_a_run_without_a_terminal_writes_no_control_characters(run_cli, tiny, caplog):
    caplog.set_level(logging.INFO)
    outcome = run_cli("train", *tiny, "hydra.run.dir=run")
    assert outcome.code == 0
    for output in (outcome.out, outcome.err, caplog.text):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", output)


def test_each_validation_logs_a_line_with_both_losses_the_speed_and_the_time(run_cli, tiny, caplog):
    caplog.set_level(logging.INFO)
    assert run_cli("train", *tiny, "hydra.run.dir=run").code == 0
    line = r"step +(\d+)   train \d\.\d{4}   val \d\.\d{4}   [\d,]+ tokens/s   \d+ s  best"
    assert re.findall(line, caplog.text) == ["10", "20"]


def test_the_training_loss_of_a_validation_is_that_of_the_steps_since_the_last_point(run_cli, tiny, caplog, tmp_path):
    """Also if the training loss is logged less often than the model is validated."""
    caplog.set_level(logging.INFO)
    shown = []
    for interval in (2, 100):
        caplog.clear()
        logged = [f"trainer.log_every_n_steps={interval}", "trainer.val_check_interval=4", "trainer.max_steps=6"]
        assert run_cli("train", *tiny, *logged, f"hydra.run.dir=run{interval}").code == 0
        shown.append(re.findall(r"step +(\d+)   train (\d\.\d{4})", caplog.text))
    losses = {int(row["step"]): float(row["train_loss"]) for row in history(tmp_path / "run2") if row["train_loss"]}
    assert shown[0] == [("4", f"{losses[4]:.4f}"), ("6", f"{losses[6]:.4f}")]
    (step, mean), (_, last) = shown[1]
    assert step == "4"
    # After step 1, which is always logged, steps 2 to 4 follow: run2 has logged the mean of steps 3 and 4.
    assert min(losses[2], losses[4]) - 1e-3 < float(mean) < max(losses[2], losses[4]) + 1e-3
    assert mean not in (last, f"{losses[1]:.4f}")


@pytest.mark.slow
def test_a_pipe_receives_plain_lines_only(tiny, tmp_path: Path):
    outcome = process(tmp_path, "train", *tiny, "hydra.run.dir=run")
    assert outcome.code == 0
    for output in (outcome.out, outcome.err):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", output)
    assert len(re.findall(r"^step +\d+ +train", outcome.err, re.MULTILINE)) == 2


def run_in_terminal(directory: Path, *overrides: str) -> str:
    """The output of train.py in a terminal of 100 columns."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    train = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), *overrides],
        cwd=directory,
        env=os.environ | {"TERM": "xterm-256color"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    output = b""
    try:
        while True:
            try:
                chunk = os.read(controller, 65536)
            except OSError:  # on Linux: the other side is closed
                break
            if not chunk:
                break
            output += chunk
        assert train.wait(timeout=60) == 0, output.decode()
    finally:
        os.close(controller)
        if train.poll() is None:
            train.kill()
            train.wait()
    return output.decode()


@pytest.mark.slow
def test_a_terminal_shows_a_transient_bar_with_loss_and_speed(tiny, tmp_path: Path):
    output = run_in_terminal(tmp_path, *tiny, *STEPS, "hydra.run.dir=run")
    bars = re.findall(
        r"loss (\d\.\d{3}).*?(\d+)/400.*?([\d,]+) tokens/s", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output)
    )
    assert len(bars) >= 2
    steps = [int(step) for _, step, _ in bars]
    assert steps == sorted(steps)
    assert all(float(speed.replace(",", "")) > 0 for _, _, speed in bars)
    assert re.search(r"step +200 +train", output), "the line of a validation is printed above the bar"
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h"), "the cursor is restored"
    end = output.split("a sample of the best checkpoint")[1]
    assert "/400" not in end
    assert "\x1b" not in (tmp_path / "run" / "train.log").read_text()
