"""Runs with several processes: launchers, failed ranks and signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import lightning as L
import pytest

from chargpt.cli import launcher
from chargpt.runs import lock
from chargpt.runs.directory import RunDirectory
from chargpt.training.callbacks.rank_errors import RankErrorFile
from tests.conftest import REPO, process
from tests.sweeps.processes import steps_done
from tests.training import run_artifacts
from tests.training.conftest import one_thread, short_samples  # noqa: F401 - fixtures

pytestmark = pytest.mark.slow

QUIET = "callbacks.samples.max_new_tokens=0"
FAIL = "+callbacks.fail._target_=tests.training.fault_injection.FailRank"


def only_run(folder: Path) -> Path:
    (run,) = (file.parent for file in folder.rglob("status.json"))
    return run


@pytest.fixture
def single_process(run_cli, tiny, tmp_path) -> dict:
    """The metrics of the same run with one process."""
    assert run_cli("train", *tiny, QUIET, "model.dropout=0.0", "hydra.run.dir=single").code == 0
    return run_artifacts.metrics(tmp_path / "single")


def test_ranks_of_torchrun_share_one_run_directory(tiny, single_process, tmp_path):
    (tmp_path / "two").mkdir()
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", str(REPO / "train.py")]
    done = subprocess.run(
        [sys.executable, *launch, *tiny, QUIET, "model.dropout=0.0"],
        cwd=tmp_path / "two",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "two")
    assert run_artifacts.metrics(run)["devices"] == 2
    assert run_artifacts.metrics(run)["final_val_loss"] == pytest.approx(single_process["final_val_loss"], abs=1e-5)
    assert done.stderr.count("parameters") == 1


def test_ranks_of_srun_share_one_run_directory(tiny, single_process, tmp_path):
    (tmp_path / "two").mkdir()
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"}
    slurm |= {
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_ID": str(15000 + os.getpid() % 5000),
        "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "localhost",
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, str(REPO / "train.py"), *tiny, QUIET, "model.dropout=0.0"],
            cwd=tmp_path / "two",
            env=os.environ | slurm | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    errors = [task.communicate(timeout=120)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], errors
    run = only_run(tmp_path / "two")
    assert run_artifacts.metrics(run)["devices"] == 2
    assert run_artifacts.metrics(run)["final_val_loss"] == pytest.approx(single_process["final_val_loss"], abs=1e-5)


@pytest.mark.parametrize(("tasks", "devices"), [(1, 2), (4, 1), (4, 2)])
def test_slurms_variables_do_not_change_a_run_without_srun(tiny, tmp_path, tasks, devices):
    """A batch script, an interactive shell or submitit sets them, where one task has several GPUs."""
    slurm = {"SLURM_NTASKS": str(tasks), "SLURM_PROCID": "0", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train"}
    slurm |= {"SLURM_NTASKS_PER_NODE": str(tasks), "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    outcome = process(tmp_path, "train", *tiny, QUIET, f"trainer.devices={devices}", **slurm)
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(only_run(tmp_path))["devices"] == devices


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_rank_that_waits_for_the_others(tiny, tmp_path, number):
    slurm = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    slurm |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
    slurm |= {"SLURM_JOB_ID": str(15000 + os.getpid() % 5000), "SLURM_JOB_NAME": "train"}
    command = [sys.executable, str(REPO / "train.py"), *tiny, QUIET]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | slurm, stderr=subprocess.PIPE, text=True) as task:
        assert task.stderr is not None
        for line in task.stderr:
            if line.startswith("   run"):  # the header: it waits next
                break
        time.sleep(3)
        task.send_signal(number)
        assert task.wait(timeout=10) == 3
        assert "interrupted" in task.stderr.read()


@pytest.mark.parametrize(("rank", "how"), [(1, "raise"), (0, "raise"), (1, "hang"), (1, "SIGKILL"), (0, "SIGKILL")])
def test_a_failed_rank_ends_the_run_and_its_error_is_reported(tiny, tmp_path, rank, how):
    fail = [FAIL, f"+callbacks.fail.rank={rank}", "+callbacks.fail.step=7", f"+callbacks.fail.how={how}"]
    start = time.monotonic()
    outcome = process(tmp_path, "train", *tiny, QUIET, "trainer.devices=2", *fail)
    assert time.monotonic() - start < 60, "including start-up"
    assert outcome.code == 1
    run = only_run(tmp_path)
    status = run_artifacts.status(run)
    reason = "was killed by SIGKILL" if how == "SIGKILL" else "failed: RuntimeError: a rank is broken"
    assert (status["state"], status["reason"]) == ("failed", f"rank {rank} {reason}")
    assert (
        outcome.err.splitlines()[-1] == f"train.py: rank {rank} {reason}. The logs are in {run.relative_to(tmp_path)}"
    )
    if how != "SIGKILL":
        assert "fault_injection.py" in (run / f"error_rank_{rank}.txt").read_text()
    processes = subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in processes


STUCK = """
import os, signal, sys, time
from pathlib import Path
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
if os.environ["LOCAL_RANK"] == "0":
    os.write(int(os.environ["CHARGPT_READY_PIPE"]), b"1")
elif {failed}:
    file = Path("run") / "error_rank_1.txt"
    file.touch()
    time.sleep(0.3)  # the parent process reads the empty file
    file.write_text("RuntimeError: broken")
time.sleep(100)
"""


@pytest.fixture
def stuck(tmp_path, monkeypatch):
    """Two ranks that handle no signals, as during a C++ call in which they wait for each other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(launcher, "KILL_SECONDS", 0.5)
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    lock.acquire(directory.path)

    def start(failed: bool) -> launcher.WorkerGroup:
        (tmp_path / "train.py").write_text(STUCK.format(failed=failed))
        return launcher.WorkerGroup(2, "never", directory)

    yield start
    lock.release(directory.path)


def test_a_failed_rank_that_does_not_exit_is_killed(stuck):
    workers = stuck(failed=True)
    start = time.monotonic()
    assert workers.wait() == 1
    assert time.monotonic() - start < 30
    assert workers.first_failure() == "rank 1 failed: RuntimeError: broken"


def test_a_second_signal_kills_ranks_that_ignore_the_first(stuck):
    workers = stuck(failed=False)
    for seconds in (2.0, 4.0):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    assert workers.wait() == 3
    assert 4 <= time.monotonic() - start < 30, "the first signal alone kills no process"


CHILD = """
import os, signal, sys, time
from chargpt.distributed import env
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.environ[env.PARENT_PID_ENV] = str(os.getppid())
env.exit_with_parent(grace=0.5)
print(os.getpid(), flush=True)
time.sleep(100)
"""


def test_a_rank_that_handles_no_signals_exits_after_its_parent():
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    parent = subprocess.Popen([sys.executable, "-c", start, CHILD], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(child)


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


GROUP = """
import atexit, os, sys, time
import torch
from chargpt.distributed import env
atexit.register(time.sleep, 100)
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
torch.distributed.init_process_group("gloo", rank=0, world_size=1)
sys.stdout.write("last output")
env.exit_process(1)
"""


def test_exit_process_does_not_wait_for_clean_up_in_a_process_group():
    done = subprocess.run([sys.executable, "-c", GROUP], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "last output"), done.stderr


def test_several_nodes_are_rejected_with_the_torchrun_command(tiny, tmp_path):
    outcome = process(tmp_path, "train", *tiny, "trainer.num_nodes=2", "trainer.devices=4", timeout=60)
    assert outcome.code == 2
    assert "torchrun --nnodes=2 --nproc-per-node=4" in outcome.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_error_file_that_cannot_be_written_does_not_hide_the_error(tmp_path):
    callback = RankErrorFile(RunDirectory(tmp_path / "elsewhere"))
    trainer = Mock(spec=L.Trainer, world_size=2, global_rank=1)
    error = RuntimeError("the error itself")
    callback.on_exception(trainer, Mock(spec=L.LightningModule), error)  # does not raise


@pytest.mark.parametrize(("batch", "files"), [(7, []), (100, ["left_0", "left_1"])], ids=["interrupted", "finished"])
def test_the_process_group_is_destroyed_only_after_a_successful_run(tiny, tmp_path, batch, files):
    """With NCCL, destroying it waits for the other ranks, which may have exited already."""
    overrides = ["+callbacks.watch._target_=tests.training.fault_injection.RecordProcessGroupExit", "hydra.run.dir=run"]
    overrides += ["+callbacks.stop._target_=tests.training.fault_injection.SignalAt", "+callbacks.stop.name=SIGTERM"]
    overrides += ["trainer.devices=2", f"+callbacks.stop.batch={batch}"]
    outcome = process(tmp_path, "train", *tiny, QUIET, *overrides)
    assert outcome.code == (0 if files else 3), outcome.err
    assert sorted(file.name for file in (tmp_path / "run").glob("left_*")) == files


TWO_RANKS = """
import os, sys, time
if os.environ["LOCAL_RANK"] == "1":
    sys.exit({code})
os.write(int(os.environ["CHARGPT_READY_PIPE"]), b"1")
time.sleep({seconds})
"""


@pytest.mark.parametrize(("code", "seconds", "expected"), [(3, 100, 1), (0, 5, 0)])
def test_rank_0_is_killed_only_if_another_rank_has_failed(tmp_path, monkeypatch, code, seconds, expected):
    """Rank 0 would wait half an hour, in a C++ call, for a rank that a signal stopped during its imports. If the other
    rank has finished, rank 0 still writes the sample."""
    script = tmp_path / "train.py"
    script.write_text(TWO_RANKS.format(code=code, seconds=seconds))
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.5)
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    lock.acquire(directory.path)
    try:
        workers = launcher.WorkerGroup(2, "never", directory)
        start = time.monotonic()
        assert workers.wait() == expected
        assert time.monotonic() - start < 50
    finally:
        lock.release(directory.path)


@pytest.mark.parametrize("when", ["claimed", "imports", "steps"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_parent_saves_the_run_at_any_time(tiny, tmp_path, number, when):
    overrides = [*tiny, QUIET, "trainer.devices=2", "trainer.max_steps=4000", "trainer.log_every_n_steps=1"]
    run = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), *overrides], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    if when == "steps":
        while steps_done(tmp_path) < 10:
            time.sleep(0.01)
    else:
        while not list(tmp_path.glob("outputs/*/*")):
            time.sleep(0.001)
        time.sleep(1.5 if when == "imports" else 0)
    run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 3, err
    assert "interrupted" in err.splitlines()[-1]
    assert "Traceback" not in err
    if when != "steps" and not list(tmp_path.iterdir()):
        return  # the unused directory was removed
    assert "train.py resume=" in err.splitlines()[-1]
    assert run_artifacts.status(only_run(tmp_path))["state"] == "interrupted"


# A module that Python imports at its start. macOS has no prctl, by which Linux signals the exit of the parent.
WITHOUT_PRCTL = """
import ctypes

class CDLL(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "prctl":
            raise AttributeError(name)
        return super().__getattr__(name)

ctypes.CDLL = CDLL
"""


@pytest.mark.parametrize("prctl", [True, False], ids=["with prctl", "without prctl"])
def test_ranks_save_a_checkpoint_and_exit_after_their_parent_was_killed(tiny, tmp_path, tmp_path_factory, prctl):
    modules = tmp_path_factory.mktemp("modules")
    (modules / "sitecustomize.py").write_text("" if prctl else WITHOUT_PRCTL)
    overrides = [*tiny, QUIET, "trainer.devices=2", "trainer.max_steps=100000", "trainer.log_every_n_steps=1"]
    parent = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), *overrides],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(modules)},
        stderr=subprocess.DEVNULL,
    )
    while steps_done(tmp_path) < 10:
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    run, deadline = only_run(tmp_path), time.monotonic() + 30
    while run_artifacts.status(run)["state"] != "interrupted" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run_artifacts.status(run)["state"] == "interrupted"
    assert run_artifacts.checkpoint(run)["global_step"] >= 10
