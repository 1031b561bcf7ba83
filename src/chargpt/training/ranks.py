"""One process for each device: who starts them watches all of them alike, and ends the run when one dies.

The starter is the plain command itself, and imports no torch. Each rank is told its number as torchrun would; a
rank that torchrun or srun has started finds that word there, and just trains.
"""

import logging
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt.config.entry import chosen_place, place_run, task_words
from chargpt.config.overrides import quote
from chargpt.errors import DONE, FAILED, INTERRUPTED, MISTAKE, Mistake
from chargpt.rank import OURS, READY, STARTER, number, started_as_rank, starter_is_gone
from chargpt.training import home, lock
from chargpt.training.run_directory import RunDirectory

log = logging.getLogger(__name__)

GRACE = 8.0  # seconds that the other ranks have to leave by themselves, once one is gone
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def train(config: DictConfig) -> None:
    """Trains what the config says: here, or in a process for each device.

    Raises:
        Mistake, Interrupted, Diverged: as `chargpt.training.run.train`.
        SystemExit: ranks that were started here ended otherwise than well.
    """
    if OURS in os.environ:  # a rank that was started here
        _train(config)
        return
    first = number() == 0  # the others, of torchrun or srun, see the same and touch nothing
    directory = RunDirectory(HydraConfig.get().run.dir)
    try:
        if config.resume == "auto":
            verdict = (home.settle if first else home.look)(config, directory)
            if verdict in (home.DONE, home.ENDED):
                log.info("%s", home.told(directory, verdict))
                if code := home.exit_code(directory, verdict):
                    raise SystemExit(code)
                return
            config.resume = str(directory.path) if verdict == home.GO_ON else "never"
        elif config.resume != "never" and (found := home.directory_of(config.resume)).is_dir():
            directory = RunDirectory(found)
            if first:
                lock.hold(found)
        count = 1 if started_as_rank() else _count(config, directory)
        if count == 1:
            _train(config)
        elif code := _train_in_ranks(count, config.resume, directory):
            raise SystemExit(code)
    except Mistake:
        lock.undo_all()
        directory.abandon()
        raise
    finally:
        lock.release_all()


def _train(config: DictConfig) -> None:
    # As Ctrl-C, until the run is under way and saves itself.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from chargpt.training.run import train as train_here  # torch and Lightning take seconds

        train_here(config)
    finally:
        signal.signal(signal.SIGTERM, before)


def _count(config: DictConfig, directory: RunDirectory) -> int:
    """How many processes the run wants on this machine."""
    settings: Any = config.trainer
    words = [word.lstrip("+").partition("=")[0] for word in task_words()]
    resumed = config.resume != "never" and directory.read_config()
    if resumed and not {"trainer", "trainer.devices"} & set(words):
        settings = resumed.trainer
    devices = OmegaConf.to_container(OmegaConf.create({"it": settings.devices}))["it"]
    if isinstance(devices, str) and "," in devices:
        devices = [device for device in devices.split(",") if device]
    if isinstance(devices, list):
        return len(devices)
    if str(devices) not in ("auto", "-1"):
        return int(devices) if str(devices).isdigit() else 1  # what it cannot be, Lightning says
    if settings.accelerator not in ("auto", "gpu", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _train_in_ranks(count: int, resume: str, directory: RunDirectory) -> int:
    """Starts the ranks, waits for them; the exit code of the run."""
    if resume == "never" and not lock.is_held(directory.path):
        directory.claim(chosen_place())
        place_run(directory.path)
        lock.hold(directory.path)
    ranks = _Ranks(count, resume, directory)
    code = ranks.wait()
    if code in (MISTAKE, INTERRUPTED):  # where nothing has begun, nothing stays
        directory.abandon()
    if (
        code == INTERRUPTED and directory.read_status()["state"] == "running"
    ):  # it was cut off in its first moments
        directory.write_status("interrupted", directory.read_status()["step"], "before its first step")
        word = shlex.quote(f"resume={directory.path}")
        sys.stderr.write(f"train.py: interrupted. Go on with: python train.py {word}\n")
    if code == FAILED and (reason := ranks.cause()):
        step = directory.read_status()["step"] if directory.status_file.exists() else 0
        directory.write_status("failed", step, reason)
        sys.stderr.write(f"train.py: {reason}. The logs are in {directory.path}\n")
    return code


class _Ranks:
    """The processes of one run on this machine."""

    def __init__(self, count: int, resume: str, directory: RunDirectory):
        self._directory = directory
        self._logs = [directory.path / f"rank_{rank}.log" for rank in range(count)]
        directory.tidy()
        replaced = ("resume=", "hydra.run.dir=")
        words = [word for word in sys.argv[1:] if not word.startswith(replaced)]
        place = quote(f"resume={directory.path}").removeprefix("resume=")
        words += [quote(f"resume={resume}"), f"hydra.run.dir={place}"]
        descriptor = lock.descriptor_of(directory.path)
        environment = os.environ | {
            "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
            "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
            OURS: str(descriptor),
            STARTER: str(os.getpid()),
        }
        self._command = [sys.executable, sys.argv[0], *words]
        self._environment, self._descriptor = environment, descriptor
        self._processes: list[subprocess.Popen] = []
        self._killed: set[int] = set()
        self._interrupted = False
        self._ready, ready = os.pipe()
        self._start(0, {READY: str(ready)}, [ready])
        os.close(ready)

    def _start(self, rank: int, more: dict[str, str], descriptors: list[int]) -> None:
        # The first speaks to the terminal, the others to a file. Each has a process group of its own: a Ctrl-C at
        # the terminal reaches it once, from here.
        with self._logs[rank].open("wb") if rank else nullcontext() as output:
            self._processes.append(
                subprocess.Popen(
                    self._command,
                    env=self._environment | more | {"LOCAL_RANK": str(rank)},
                    stdout=output,
                    stderr=output,
                    pass_fds=[self._descriptor, *descriptors],
                    process_group=0,
                )
            )

    def _start_others_when_ready(self) -> None:
        """Once the first has built everything and found no mistake: so that one process tells it, and at once."""
        if len(self._processes) == 1 and select.select([self._ready], [], [], 0)[0]:
            if os.read(self._ready, 1):
                for rank in range(1, len(self._logs)):
                    self._start(rank, {}, [])
            else:  # it has ended
                self._processes[0].wait()

    def wait(self) -> int:
        """Waits until all have ended, passes signals on, and puts an end to those that a dead one left."""
        before = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        deadline, asked = float("inf"), False
        try:
            while any(process.poll() is None for process in self._processes):
                self._start_others_when_ready()
                ended = [process.returncode for process in self._processes if process.returncode is not None]
                if ended and deadline == float("inf"):
                    deadline = time.monotonic() + (GRACE if any(ended) else 5 * GRACE)
                if time.monotonic() > deadline:
                    self._kill()
                if not asked and starter_is_gone():
                    asked = True
                    self._pass_on(signal.SIGTERM, None)
                time.sleep(0.05)
        finally:
            self._kill()
            os.close(self._ready)
            for number, handler in before.items():
                signal.signal(number, handler)
        for file in self._logs:
            if file.exists() and not file.stat().st_size:
                file.unlink()
        codes = [process.returncode for process in self._processes]
        if not any(codes):
            return DONE
        if self._interrupted or set(codes) <= {DONE, INTERRUPTED}:
            return INTERRUPTED
        return MISTAKE if set(codes) <= {DONE, MISTAKE} else FAILED

    def cause(self) -> str:
        """The rank that died first, and of what; empty if the run has said so itself."""
        for rank, process in enumerate(self._processes):
            if process.returncode < 0 and rank not in self._killed:
                return f"rank {rank} was killed by {signal.Signals(-process.returncode).name}"
        errors = {rank: self._directory.path / f"error_rank_{rank}.txt" for rank in range(len(self._processes))}
        errors = {rank: file for rank, file in errors.items() if file.exists()}
        if errors:
            first = min(errors, key=lambda rank: errors[rank].stat().st_mtime_ns)
            return f"rank {first} failed: {errors[first].read_text().strip().splitlines()[-1]}"
        if self._directory.read_status()["state"] in ("diverged", "failed"):
            return ""
        codes = [process.returncode for process in self._processes]
        bad = next((rank for rank, code in enumerate(codes) if code > 0), None)
        return "a rank hung and was killed" if bad is None else f"rank {bad} left with exit code {codes[bad]}"

    def _kill(self) -> None:
        for rank, process in enumerate(self._processes):
            if process.poll() is None:
                self._killed.add(rank)
                process.kill()
                process.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
