"""Faults: out of memory, a NaN loss with rollback, and SIGTERM."""

import os
import signal
import time

from cases import Case, Failure
from kit import Stage
from runs import Run

SECONDS = 25
TINY = ["model=gpt_nano", "model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.block_size=32"]
TINY += ["recipe=nanogpt_laptop", "data.batch_size=4"]
CASES = [
    # On a CPU, memory is checked in advance: a process that used too much would be killed.
    Case("out of memory", "exit code", expected="== 1", dry="== 2"),
    Case("out of memory", "message", expected="train.py: out of memory"),
    Case("nan, rollback", "exit code", expected="== 0"),
    Case("nan, rollback", "rollbacks", expected="== 1"),
    Case("nan, rollback", "validation loss", "nats", "< 4"),
    Case("sigterm", "exit code", expected="== 3"),
    Case("sigterm", "seconds to stop", "s", "<= 15"),
    Case("sigterm", "resumed, exit code", expected="== 0"),
    Case("sigterm", "resumed, steps", expected="== 1500"),
]


def run(stage: Stage) -> None:
    base = stage.overrides(*stage.random_text())
    with stage.attempt("out of memory"):
        # The activations of 131,072 blocks of 256 tokens require terabytes.
        memory = stage.run("memory", *base, "model=gpt_small", "data.batch_size=131072", timeout=60)
        memory.start().wait()
        stage.row("out of memory", "exit code", memory.code)
        line, expected = memory.last_line(), "train.py: out of memory"
        correct = line.startswith(expected) and "Traceback" not in memory.err.read_text()
        stage.row("out of memory", "message", expected if correct else line, seconds=0.0)
    with stage.attempt("nan, rollback"):
        nan(stage, base)
    with stage.attempt("sigterm"):
        sigterm(stage, base)


def nan(stage: Stage, base: list[str]) -> None:
    # The rollback halves the learning rate to a value below `above`.
    fault = {"_target_": "probes.Fault", "step": 15, "above": 7e-4}
    overrides = [f"+callbacks.fault.{key}={value}" for key, value in fault.items()]
    overrides += ["optimizer.lr=1e-3", "schedule=constant", "schedule.warmup_steps=0", "on_divergence=rollback"]
    overrides += ["trainer.max_steps=30", "trainer.val_check_interval=10", "trainer.log_every_n_steps=5"]
    diverging = stage.run("nan", *base, *TINY, *overrides).start().wait()
    stage.row("nan, rollback", "exit code", diverging.code)
    metrics = diverging.check().json("metrics")
    stage.row("nan, rollback", "rollbacks", metrics["rollbacks"], seconds=0.0)
    stage.row("nan, rollback", "validation loss", metrics["final_val_loss"], seconds=0.0)


def sigterm(stage: Stage, base: list[str]) -> None:
    """Sends SIGTERM in the middle of a run, which is compiled on a GPU, and resumes it."""
    trainer = dict(max_steps=1500, val_check_interval=1500, log_every_n_steps=5)
    trainer |= dict(compile="false" if stage.dry else "true")
    long = stage.run("long", *base, *TINY, *(f"trainer.{key}={value}" for key, value in trainer.items())).start()
    while not long.poll() and not has_logged(long):
        time.sleep(0.002)
    if not long.pid:
        raise Failure(f"the run ended before the signal: {long.last_line()}")
    os.kill(long.pid, signal.SIGTERM)
    signal_time = time.monotonic()
    stage.row("sigterm", "exit code", long.wait().code)
    stage.row("sigterm", "seconds to stop", time.monotonic() - signal_time, seconds=0.0)
    long.check(3)
    rest = stage.run("rest", f"resume={long.directory}", "trainer.compile=false", directory=long.directory)
    stage.row("sigterm", "resumed, exit code", rest.start().wait().code)
    stage.row("sigterm", "resumed, steps", rest.check().json("metrics")["steps"], seconds=0.0)


def has_logged(run: Run) -> bool:
    history = run.directory / "history.csv"
    return history.exists() and history.read_bytes().count(b"\n") > 3
