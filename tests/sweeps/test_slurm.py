"""hydra/launcher=slurm, as far as it can be tried without Slurm: what is submitted, and preemption."""

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


def test_what_is_submitted_asks_for_the_devices_of_a_job_and_to_be_queued_again(monkeypatch, tmp_path):
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        words = ["hydra/launcher=slurm", "trainer.devices=4", "name=deep", "hydra.launcher.partition=long"]
        config = compose("train", words, return_hydra_config=True)
        launcher = OmegaConf.to_container(config.hydra.launcher, resolve=False)
        asked = {key: OmegaConf.select(config, f"hydra.launcher.{key}") for key in launcher if key != "submitit_folder"}
    renamed = {"name": "job_name", "timeout_min": "time"}
    mine = {renamed.get(k, k): OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for k, v in asked.items()}
    for key in ("_target_", "max_num_timeout", "tasks_per_node", "mem_gb"):
        mine.pop(key)
    script = slurm._make_sbatch_string("train", tmp_path, **{k: v for k, v in mine.items() if v is not None})
    lines = set(script.splitlines())
    assert {
        "#SBATCH --gres=gpu:4",
        "#SBATCH --requeue",
        "#SBATCH --partition=long",
        "#SBATCH --job-name=deep",
    } <= lines
    assert any(line.startswith("#SBATCH --signal=USR2@") for line in lines)


@pytest.mark.slow
def test_a_job_that_is_preempted_saves_itself_and_goes_on_when_it_is_queued_again(tiny, tmp_path):
    words = [*tiny, "callbacks.samples.max_new_tokens=0", "trainer.max_steps=400", "trainer.log_every_n_steps=1"]
    words += ["trainer.val_check_interval=200", "model.dropout=0.1"]
    (tmp_path / "undisturbed").mkdir()
    (tmp_path / "preempted").mkdir()
    assert Sweep(tmp_path / "undisturbed", *words).wait() == 0
    sweep = Sweep(tmp_path / "preempted", "hydra/launcher=submitit_local", *words)
    while steps_done(tmp_path) < 400 + 10:
        assert sweep.process.poll() is None, sweep.output
        time.sleep(0.01)
    commands = {pid: (Path("/proc") / str(pid) / "cmdline").read_bytes() for pid in sweep.alive()}
    (worker,) = [pid for pid, command in commands.items() if b"submitit.core._submit" in command]
    os.kill(worker, signal.SIGUSR2)  # what Slurm sends before it takes the node away
    assert sweep.wait() == 0, sweep.output
    (run,) = finished(tmp_path / "preempted").values()
    log = (run / "job.log").read_text()
    assert "interrupted after step" in log and "goes on where it stopped" in log
    assert [row["step"] for row in run_artifacts.history(run)] == [str(step) for step in range(1, 401)]
    assert set(losses(tmp_path / "preempted").values()) == set(losses(tmp_path / "undisturbed").values())
