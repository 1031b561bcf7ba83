"""Several processes of one run, whoever starts them; and what becomes of them when one dies or a signal comes."""

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
DIE = "+callbacks.die._target_=tests.training.fault_injection.FailRank"


def only_run(folder: Path) -> Path:
    (run,) = (file.parent for file in folder.rglob("status.json"))
    return run


@pytest.fixture
def alone(run_cli, tiny, tmp_path) -> dict:
    """What one process makes of it."""
    assert run_cli("train", *tiny, QUIET, "model.dropout=0.0", "hydra.run.dir=alone").code == 0
    return run_artifacts.metrics(tmp_path / "alone")


def test_torchrun_starts_them_and_rank_0_names_one_directory(tiny, alone, tmp_path):
    (tmp_path / "two").mkdir()
    words = ["-m", "torch.distributed.run", "--nproc-per-node=2", str(REPO / "train.py")]
    done = subprocess.run(
        [sys.executable, *words, *tiny, QUIET, "model.dropout=0.0"],
        cwd=tmp_path / "two",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "two")
    assert run_artifacts.metrics(run)["devices"] == 2
    assert run_artifacts.metrics(run)["final_val_loss"] == pytest.approx(alone["final_val_loss"], abs=1e-5)
    assert done.stderr.count("parameters") == 1


def test_srun_starts_them_and_rank_0_names_one_directory(tiny, alone, tmp_path):
    (tmp_path / "two").mkdir()
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"}
    slurm |= {
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
    said = [task.communicate(timeout=120)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    run = only_run(tmp_path / "two")
    assert run_artifacts.metrics(run)["devices"] == 2
    assert run_artifacts.metrics(run)["final_val_loss"] == pytest.approx(alone["final_val_loss"], abs=1e-5)


def test_slurms_variables_around_a_plain_run_change_nothing(tiny, tmp_path):
    """As in a batch script, or under submitit, where one task has two GPUs."""
    slurm = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train"}
    outcome = process(tmp_path, "train", *tiny, QUIET, "trainer.devices=2", **slurm)
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(only_run(tmp_path))["devices"] == 2


@pytest.mark.parametrize(("rank", "how"), [(1, "raise"), (0, "raise"), (1, "hang"), (1, "SIGKILL"), (0, "SIGKILL")])
def test_a_rank_that_dies_ends_the_run_at_once_with_its_own_error(tiny, tmp_path, rank, how):
    die = [DIE, f"+callbacks.die.rank={rank}", "+callbacks.die.step=7", f"+callbacks.die.how={how}"]
    start = time.monotonic()
    outcome = process(tmp_path, "train", *tiny, QUIET, "trainer.devices=2", *die)
    assert time.monotonic() - start < 60, "the start included"
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
    left = subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in left


STUCK = """
import os, signal, sys, time
from pathlib import Path
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
if os.environ["LOCAL_RANK"] == "0":
    os.write(int(os.environ["CHARGPT_READY_PIPE"]), b"1")
elif {failed}:
    (Path("run") / "error_rank_1.txt").write_text("RuntimeError: broken")
time.sleep(100)
"""


@pytest.fixture
def stuck(tmp_path, monkeypatch):
    """Two ranks that handle no signal, as in a C++ call in which they wait for each other."""
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


def test_a_rank_that_has_failed_and_does_not_end_is_ended(stuck):
    watched = stuck(failed=True)
    start = time.monotonic()
    assert watched.wait() == 1
    assert time.monotonic() - start < 30
    assert watched.first_failure() == "rank 1 failed: RuntimeError: broken"


def test_a_second_signal_ends_ranks_that_do_not_answer_the_first(stuck):
    watched = stuck(failed=False)
    for seconds in (2.0, 4.0):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    assert watched.wait() == 3
    assert 4 <= time.monotonic() - start < 30, "the first signal alone ends nothing"


CHILD = """
import os, signal, sys, time
from chargpt.distributed import env
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.environ[env.PARENT_PID_ENV] = str(os.getppid())
env.exit_with_parent(grace=0.5)
print(os.getpid(), flush=True)
time.sleep(100)
"""


def test_a_rank_that_handles_no_signal_ends_after_its_starter(tmp_path):
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    starter = subprocess.Popen([sys.executable, "-c", start, CHILD], stdout=subprocess.PIPE, text=True)
    child = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
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
sys.stdout.write("its last words")
env.exit_process(1)
"""


def test_a_process_that_leaves_its_group_in_an_error_waits_for_nothing():
    done = subprocess.run([sys.executable, "-c", GROUP], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "its last words"), done.stderr


def test_several_nodes_are_refused_with_the_line_to_type(tiny, tmp_path):
    outcome = process(tmp_path, "train", *tiny, "trainer.num_nodes=2", "trainer.devices=4", timeout=60)
    assert outcome.code == 2
    assert "torchrun --nnodes=2 --nproc-per-node=4" in outcome.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_error_on_a_disk_that_is_not_shared_is_not_hidden(tmp_path):
    callback = RankErrorFile(RunDirectory(tmp_path / "elsewhere"))
    trainer = Mock(spec=L.Trainer, world_size=2, global_rank=1)
    error = RuntimeError("the error itself")
    callback.on_exception(trainer, Mock(spec=L.LightningModule), error)  # raises none of its own


@pytest.mark.parametrize(("batch", "left"), [(7, []), (100, ["left_0", "left_1"])], ids=["interrupted", "finished"])
def test_the_process_group_is_destroyed_only_after_a_run_that_ended_well(tiny, tmp_path, batch, left):
    """Under NCCL a rank that destroys it waits for the others, which may have left already."""
    words = ["+callbacks.watch._target_=tests.training.fault_injection.RecordProcessGroupExit", "hydra.run.dir=run"]
    words += ["+callbacks.cut._target_=tests.training.fault_injection.SignalAt", "+callbacks.cut.name=SIGTERM"]
    outcome = process(tmp_path, "train", *tiny, QUIET, "trainer.devices=2", *words, f"+callbacks.cut.batch={batch}")
    assert outcome.code == (0 if left else 3), outcome.err
    assert sorted(file.name for file in (tmp_path / "run").glob("left_*")) == left


TWO_RANKS = """
import os, sys, time
if os.environ["LOCAL_RANK"] == "1":
    sys.exit({code})
os.write(int(os.environ["CHARGPT_READY_PIPE"]), b"1")
time.sleep({seconds})
"""


@pytest.mark.parametrize(("code", "seconds", "expected"), [(3, 100, 1), (0, 5, 0)])
def test_the_first_rank_is_waited_for_unless_another_has_failed(tmp_path, monkeypatch, code, seconds, expected):
    """One that a signal ends while it imports torch leaves the first in a C++ call, for half an hour; one that is
    done leaves the sample to it."""
    script = tmp_path / "train.py"
    script.write_text(TWO_RANKS.format(code=code, seconds=seconds))
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.5)
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    lock.acquire(directory.path)
    try:
        watched = launcher.WorkerGroup(2, "never", directory)
        start = time.monotonic()
        assert watched.wait() == expected
        assert time.monotonic() - start < 50
    finally:
        lock.release(directory.path)


@pytest.mark.parametrize("after", ["begin", "start", "steps"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_starter_saves_the_run_whenever_it_comes(tiny, tmp_path, number, after):
    words = [*tiny, QUIET, "trainer.devices=2", "trainer.max_steps=4000", "trainer.log_every_n_steps=1"]
    run = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    if after == "steps":
        while steps_done(tmp_path) < 10:
            time.sleep(0.01)
    else:
        while not list(tmp_path.glob("outputs/*/*")):
            time.sleep(0.001)
        time.sleep(1.5 if after == "start" else 0)  # in its imports; or before it has handlers
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 3, said
    assert "interrupted" in said.splitlines()[-1]
    assert "Traceback" not in said
    if after != "steps" and not list(tmp_path.iterdir()):
        return  # nothing had begun, nothing stays
    assert "python train.py resume=" in said.splitlines()[-1]
    assert run_artifacts.status(only_run(tmp_path))["state"] == "interrupted"


def test_ranks_whose_starter_was_killed_save_themselves_and_leave(tiny, tmp_path):
    words = [*tiny, QUIET, "trainer.devices=2", "trainer.max_steps=100000", "trainer.log_every_n_steps=1"]
    starter = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), *words], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    while steps_done(tmp_path) < 10:
        time.sleep(0.01)
    starter.kill()
    starter.wait()
    run, deadline = only_run(tmp_path), time.monotonic() + 30
    while run_artifacts.status(run)["state"] != "interrupted" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run_artifacts.status(run)["state"] == "interrupted"
    assert run_artifacts.checkpoint(run)["global_step"] >= 10
