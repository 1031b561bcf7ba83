"""requeue(): the scontrol command, and its failures."""

from pathlib import Path

import pytest

from chargpt.distributed.slurm import requeue


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch):
    """A fake scontrol that records its arguments, then runs a script."""

    def install(script: str) -> Path:
        scontrol = tmp_path / "scontrol"
        scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\n{script}\n')
        scontrol.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        return tmp_path / "arguments"

    return install


def test_an_array_job_is_requeued_by_array_and_task(slurm, monkeypatch):
    arguments = slurm("exit 0")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue()
    assert arguments.read_text() == "requeue 10_3\n"


def test_a_failure_is_logged_with_slurms_message(slurm, caplog):
    slurm("echo Requested operation not permitted >&2; exit 1")
    requeue()
    assert caplog.messages == ["Slurm job 12 cannot be requeued: Requested operation not permitted"]


def test_a_missing_scontrol_is_logged(slurm, caplog, monkeypatch, tmp_path: Path):
    slurm("")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    requeue()
    assert "cannot be requeued" in caplog.text
