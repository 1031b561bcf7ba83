"""hydra/launcher=gpus: each job on devices of its own, as many at once as there are."""

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
pytestmark = pytest.mark.slow


def seen(folder) -> list[dict]:
    return [json.loads(file.read_text()) for file in folder.glob("*.json")]


def most_at_once(jobs: list[dict]) -> int:
    """The largest number of jobs that ran at one moment; it is reached as one of them starts."""
    return max(sum(job["start"] <= at["start"] < job["end"] for job in jobs) for at in jobs)


@pytest.fixture
def sweep(tiny, tmp_path):
    """Five jobs on pretended GPUs; what each saw."""

    def run(*words: str):
        (tmp_path / "seen").mkdir()
        some = [word for word in tiny if not word.startswith("model.n_layer")]
        some += ["+callbacks.witness._target_=tests.training.fault_injection.RecordDevices"]
        some += [f"+callbacks.witness.folder={tmp_path / 'seen'}", "hydra/launcher=gpus", "seed=1,2,3,4,5"]
        outcome = process(tmp_path, "train", "-m", *some, "model.n_layer=1", *words, timeout=200)
        assert outcome.code == 0, outcome.err
        return outcome, seen(tmp_path / "seen")

    return run


def test_never_two_jobs_on_one_gpu_and_each_sees_just_its_own(sweep, tmp_path):
    outcome, jobs = sweep("hydra.launcher.ray.init.num_gpus=2", "hydra.launcher.gpus=1")
    assert len(jobs) == len(finished(tmp_path)) == 5
    assert {job["devices"] for job in jobs} == {"0", "1"}
    for one, other in combinations(jobs, 2):
        if one["devices"] == other["devices"]:
            assert one["end"] <= other["start"] or other["end"] <= one["start"]
    lines = outcome.err.splitlines()
    for number in range(5):
        (begun,) = [line for line in lines if line.startswith(f"#{number} running")]
        (ended,) = [line for line in lines if line.startswith(f"#{number} finished")]
        assert f"seed={number + 1} " in begun and "job.log" in begun
        assert "validation loss" in ended
        assert "n_embd" not in ended, "only what varies is told"
    for run in finished(tmp_path).values():
        assert "parameters" in (run / "job.log").read_text()


def test_half_a_gpu_each_packs_two_jobs_on_one_and_no_more(sweep):
    _, jobs = sweep("hydra.launcher.ray.init.num_gpus=1", "hydra.launcher.gpus=0.5")
    assert {job["devices"] for job in jobs} == {"0"}
    assert most_at_once(jobs) == 2


def test_a_share_of_a_gpu_for_each_of_several_processes_is_refused(tiny, tmp_path):
    words = [*tiny, "hydra/launcher=gpus", "hydra.launcher.ray.init.num_gpus=2", "hydra.launcher.gpus=0.5"]
    outcome = process(tmp_path, "train", "-m", *words, "trainer.devices=2", "seed=1,2", timeout=100)
    assert outcome.code == 2
    assert "hydra.launcher.gpus=1, or trainer.devices=1" in outcome.err.splitlines()[-1]


def test_without_a_gpu_the_jobs_share_the_cores_and_take_as_many_threads(sweep):
    _, jobs = sweep("hydra.launcher.ray.init.num_gpus=0", "hydra.launcher.ray.init.num_cpus=4", "hydra.launcher.cpus=2")
    assert {job["threads"] for job in jobs} == {job["compile_threads"] for job in jobs} == {"2"}
    assert most_at_once(jobs) == 2


def test_ctrl_c_saves_the_jobs_that_run(tiny, tmp_path):
    some = [
        *tiny,
        "hydra/launcher=gpus",
        "hydra.launcher.ray.init.num_cpus=2",
        "seed=1,2",
        "trainer.max_steps=100000",
    ]
    sweep = Sweep(tmp_path, *some, "trainer.log_every_n_steps=1", "trainer.val_check_interval=100000")
    while len(list(tmp_path.rglob("history.csv"))) < 2:
        assert sweep.process.poll() is None, sweep.output
        time.sleep(0.05)
    os.killpg(sweep.process.pid, signal.SIGINT)
    assert sweep.wait(60) == 3, sweep.output
    for file in tmp_path.rglob("status.json"):
        assert run_artifacts.status(file.parent)["state"] == "interrupted"
        assert run_artifacts.checkpoint(file.parent)["global_step"] == run_artifacts.status(file.parent)["step"] > 0


def test_a_job_asks_for_what_its_own_devices_need_and_too_many_are_a_mistake(tiny, tmp_path):
    some = [*tiny, "hydra/launcher=gpus", "hydra.launcher.ray.init.num_cpus=2"]
    outcome = process(tmp_path, "train", "-m", *some, "trainer.devices=1,4", timeout=100)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("train.py: job 1 asks for 4 CPUs, and there are 2")
    outcome = process(tmp_path, "train", "-m", *some, "trainer.devices=1,2", timeout=100)
    assert outcome.code == 0, outcome.err
    runs = finished(tmp_path).values()
    assert sorted(OmegaConf.load(run / ".hydra" / "config.yaml").trainer.devices for run in runs) == [1, 2]
