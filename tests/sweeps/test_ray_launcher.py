"""hydra/launcher=gpus: jobs run in parallel on separate devices."""

import json
import os
import signal
import time
from itertools import combinations

import pytest
from omegaconf import OmegaConf

from tests.conftest import process
from tests.sweeps.processes import Sweep, finished
from tests.training import run_artifacts

pytest.importorskip("ray")
pytestmark = pytest.mark.long


def max_parallel(jobs: list[dict]) -> int:
    """The largest number of jobs that ran simultaneously; it is reached when a job starts."""
    return max(sum(job["start"] <= other["start"] < job["end"] for job in jobs) for other in jobs)


@pytest.fixture
def sweep(tiny, tmp_path):
    """Runs five jobs on simulated GPUs; returns the outcome and what each job observed."""

    def run(*overrides: str):
        folder = tmp_path / "records"
        folder.mkdir()
        common = [override for override in tiny if not override.startswith("model.n_layer")]
        common += ["+callbacks.record._target_=tests.training.fault_injection.RecordDevices"]
        common += [f"+callbacks.record.folder={folder}", "hydra/launcher=gpus", "seed=1,2,3,4,5"]
        outcome = process(tmp_path, "train", "-m", *common, "model.n_layer=1", *overrides, timeout=200)
        assert outcome.code == 0, outcome.err
        return outcome, [json.loads(file.read_text()) for file in folder.glob("*.json")]

    return run


def test_jobs_do_not_share_a_gpu_and_see_only_their_own(sweep, tmp_path):
    outcome, jobs = sweep("hydra.launcher.ray.init.num_gpus=2", "hydra.launcher.gpus=1")
    assert len(jobs) == len(finished(tmp_path)) == 5
    assert {job["devices"] for job in jobs} == {"0", "1"}
    for one, other in combinations(jobs, 2):
        if one["devices"] == other["devices"]:
            assert one["end"] <= other["start"] or other["end"] <= one["start"]
    lines = outcome.err.splitlines()
    for number in range(5):
        (start,) = [line for line in lines if line.startswith(f"#{number} running")]
        (end,) = [line for line in lines if line.startswith(f"#{number} finished")]
        assert f"seed={number + 1} " in start and "job.log" in start
        assert "validation loss" in end
        assert "n_embd" not in end, "only the swept settings are shown"
    for run in finished(tmp_path).values():
        assert "parameters" in (run / "job.log").read_text()


def test_with_half_a_gpu_per_job_two_jobs_share_a_gpu(sweep):
    _, jobs = sweep("hydra.launcher.ray.init.num_gpus=1", "hydra.launcher.gpus=0.5")
    assert {job["devices"] for job in jobs} == {"0"}
    assert max_parallel(jobs) == 2


def test_a_fraction_of_a_gpu_for_several_processes_is_refused(tiny, tmp_path):
    overrides = [*tiny, "hydra/launcher=gpus", "hydra.launcher.ray.init.num_gpus=2", "hydra.launcher.gpus=0.5"]
    outcome = process(tmp_path, "train", "-m", *overrides, "trainer.devices=2", "seed=1,2", timeout=100)
    assert outcome.code == 2
    assert "hydra.launcher.gpus=1, or trainer.devices=1" in outcome.err.splitlines()[-1]


def test_without_gpus_the_jobs_share_the_cores_and_use_as_many_threads(sweep):
    _, jobs = sweep("hydra.launcher.ray.init.num_gpus=0", "hydra.launcher.ray.init.num_cpus=4", "hydra.launcher.cpus=2")
    assert {job["threads"] for job in jobs} == {job["compile_threads"] for job in jobs} == {"2"}
    assert max_parallel(jobs) == 2


def test_ctrl_c_interrupts_the_jobs_and_saves_their_checkpoints(tiny, tmp_path):
    overrides = [*tiny, "hydra/launcher=gpus", "hydra.launcher.ray.init.num_cpus=2", "seed=1,2"]
    overrides += ["trainer.max_steps=100000", "trainer.log_every_n_steps=1", "trainer.val_check_interval=100000"]
    sweep = Sweep(tmp_path, *overrides)
    while len(list(tmp_path.rglob("history.csv"))) < 2:
        assert sweep.process.poll() is None, sweep.output
        time.sleep(0.05)
    os.killpg(sweep.process.pid, signal.SIGINT)
    assert sweep.wait(60) == 3, sweep.output
    for file in tmp_path.rglob("status.json"):
        assert run_artifacts.status(file.parent)["state"] == "interrupted"
        assert run_artifacts.checkpoint(file.parent)["global_step"] == run_artifacts.status(file.parent)["step"] > 0


def test_a_job_requests_the_resources_of_its_devices_and_too_many_are_a_user_error(tiny, tmp_path):
    overrides = [*tiny, "hydra/launcher=gpus", "hydra.launcher.ray.init.num_cpus=2"]
    outcome = process(tmp_path, "train", "-m", *overrides, "trainer.devices=1,4", timeout=100)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("train.py: job 1 requests 4 CPUs, but there are 2")
    outcome = process(tmp_path, "train", "-m", *overrides, "trainer.devices=1,2", timeout=100)
    assert outcome.code == 0, outcome.err
    runs = finished(tmp_path).values()
    assert sorted(OmegaConf.load(run / ".hydra" / "config.yaml").trainer.devices for run in runs) == [1, 2]
