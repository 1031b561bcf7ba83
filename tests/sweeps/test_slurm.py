"""hydra/launcher=slurm without Slurm: the submitted script, and preemption."""

import os
import signal
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.conftest import REPO
from tests.sweeps.processes import Sweep, finished, losses, steps_done
from tests.training import run_artifacts

slurm = pytest.importorskip("submitit.slurm.slurm")


def test_the_submitted_script_requests_the_devices_of_a_job_and_requeueing(monkeypatch, tmp_path):
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        overrides = ["hydra/launcher=slurm", "trainer.devices=4", "name=deep", "hydra.launcher.partition=long"]
        config = compose("train", overrides, return_hydra_config=True)
        keys = OmegaConf.to_container(config.hydra.launcher, resolve=False).keys() - {"submitit_folder"}
        settings = {key: OmegaConf.select(config, f"hydra.launcher.{key}") for key in keys}
    renamed = {"name": "job_name", "timeout_min": "time"}
    params = {renamed.get(k, k): OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for k, v in settings.items()}
    for key in ("_target_", "max_num_timeout", "tasks_per_node", "mem_gb"):
        params.pop(key)
    script = slurm._make_sbatch_string("train", tmp_path, **{k: v for k, v in params.items() if v is not None})
    lines = set(script.splitlines())
    assert {
        "#SBATCH --gres=gpu:4",
        "#SBATCH --requeue",
        "#SBATCH --partition=long",
        "#SBATCH --job-name=deep",
    } <= lines
    assert any(line.startswith("#SBATCH --signal=USR2@") for line in lines)


@pytest.mark.slow
def test_a_preempted_job_saves_a_checkpoint_and_is_resumed_when_it_is_requeued(tiny, tmp_path):
    overrides = [*tiny, "callbacks.samples.max_new_tokens=0", "trainer.max_steps=400", "trainer.log_every_n_steps=1"]
    overrides += ["trainer.val_check_interval=200", "model.dropout=0.1"]
    (tmp_path / "uninterrupted").mkdir()
    (tmp_path / "preempted").mkdir()
    assert Sweep(tmp_path / "uninterrupted", *overrides).wait() == 0
    sweep = Sweep(tmp_path / "preempted", "hydra/launcher=submitit_local", *overrides)
    while steps_done(tmp_path) < 400 + 10:
        assert sweep.process.poll() is None, sweep.output
        time.sleep(0.01)
    commands = {pid: (Path("/proc") / str(pid) / "cmdline").read_bytes() for pid in sweep.alive()}
    (worker,) = [pid for pid, command in commands.items() if b"submitit.core._submit" in command]
    os.kill(worker, signal.SIGUSR2)  # Slurm's signal before a preemption
    assert sweep.wait() == 0, sweep.output
    (run,) = finished(tmp_path / "preempted").values()
    log = (run / "job.log").read_text()
    assert "interrupted after step" in log and "resuming " in log
    assert [row["step"] for row in run_artifacts.history(run)] == [str(step) for step in range(1, 401)]
    assert set(losses(tmp_path / "preempted").values()) == set(losses(tmp_path / "uninterrupted").values())
