"""What the terminal shows: a bar for people, plain lines for files and pipes."""

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

STEPS = ["trainer.max_steps=400", "trainer.val_check_interval=200", "trainer.log_every_n_steps=10"]


def test_a_run_without_a_terminal_writes_no_control_characters(run_cli, tiny, caplog):
    caplog.set_level(logging.INFO)
    outcome = run_cli("train", *tiny, "hydra.run.dir=run")
    assert outcome.code == 0
    for written in (outcome.out, outcome.err, caplog.text):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", written)


def test_each_validation_is_a_line_with_both_losses_the_speed_and_the_time(run_cli, tiny, caplog):
    caplog.set_level(logging.INFO)
    assert run_cli("train", *tiny, "hydra.run.dir=run").code == 0
    line = r"step +(\d+)   train \d\.\d{4}   val \d\.\d{4}   [\d,]+ tokens/s   \d+ s  best"
    assert re.findall(line, caplog.text) == ["10", "20"]


@pytest.mark.slow
def test_a_pipe_gets_plain_lines_alone(tiny, tmp_path: Path):
    outcome = process(tmp_path, "train", *tiny, "hydra.run.dir=run")
    assert outcome.code == 0
    for written in (outcome.out, outcome.err):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", written)
    assert len(re.findall(r"^step +\d+ +train", outcome.err, re.MULTILINE)) == 2


def on_a_terminal(folder: Path, *words: str) -> str:
    """All that a train.py writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    train = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), *words],
        cwd=folder,
        env=os.environ | {"TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    try:
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux's way to say that the other side is closed
                break
            if not part:
                break
            written += part
        assert train.wait(timeout=60) == 0, written.decode()
    finally:
        os.close(ours)
        if train.poll() is None:
            train.kill()
            train.wait()
    return written.decode()


@pytest.mark.slow
def test_a_terminal_shows_a_bar_with_loss_and_speed_that_goes_away_at_the_end(tiny, tmp_path: Path):
    written = on_a_terminal(tmp_path, *tiny, *STEPS, "hydra.run.dir=run")
    bars = re.findall(
        r"loss (\d\.\d{3}).*?(\d+)/400.*?([\d,]+) tokens/s", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)
    )
    assert len(bars) >= 2
    steps = [int(step) for _, step, _ in bars]
    assert steps == sorted(steps)
    assert all(float(speed.replace(",", "")) > 0 for _, _, speed in bars)
    assert re.search(r"step +200 +train", written), "the line of a validation stands above the bar"
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h"), "the cursor is shown again"
    end = written.split("a sample of the best checkpoint")[1]
    assert "/400" not in end
    assert "\x1b" not in (tmp_path / "run" / "train.log").read_text()
