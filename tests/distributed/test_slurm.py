"""What Slurm is asked, and that a refusal of its is no error of ours."""

from pathlib import Path

import pytest

from chargpt.distributed.slurm import requeue


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch):
    """A Slurm that writes down what it is asked, and answers so."""

    def answering(script: str) -> Path:
        scontrol = tmp_path / "scontrol"
        scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{script}\n')
        scontrol.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        return tmp_path / "asked"

    return answering


def test_a_job_of_an_array_is_named_by_the_array_and_its_number(slurm, monkeypatch):
    asked = slurm("exit 0")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue()
    assert asked.read_text() == "requeue 10_3\n"


def test_a_refusal_is_told_in_slurms_words(slurm, caplog):
    slurm("echo Requested operation not permitted >&2; exit 1")
    requeue()
    assert caplog.messages == ["Slurm's job 12 cannot be requeued: Requested operation not permitted"]


def test_a_slurm_that_is_not_there_is_told(slurm, caplog, monkeypatch, tmp_path: Path):
    slurm("")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    requeue()
    assert "cannot be requeued" in caplog.text
