"""What happens when memory is not enough, when a loss is NaN, and when SIGTERM comes."""

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
    # A CPU is asked beforehand: there a process that wants too much would be killed.
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
    base = stage.words(*stage.invented())
    with stage.attempt("out of memory"):
        # The activations of 131,072 blocks of 256 want some TB.
        memory = stage.run("memory", *base, "model=gpt_small", "data.batch_size=131072", timeout=60)
        memory.start().wait()
        stage.row("out of memory", "exit code", memory.code)
        line, wanted = memory.last_line(), "train.py: out of memory"
        plain = line.startswith(wanted) and "Traceback" not in memory.err.read_text()
        stage.row("out of memory", "message", wanted if plain else line, seconds=0.0)
    with stage.attempt("nan, rollback"):
        nan(stage, base)
    with stage.attempt("sigterm"):
        sigterm(stage, base)


def nan(stage: Stage, base: list[str]) -> None:
    fault = {"_target_": "probes.Fault", "step": 15, "above": 7e-4}  # not again with the halved learning rate
    words = [f"+callbacks.fault.{key}={value}" for key, value in fault.items()]
    words += ["optimizer.lr=1e-3", "schedule=constant", "schedule.warmup_steps=0", "on_divergence=rollback"]
    words += ["trainer.max_steps=30"]
    lost = stage.run("nan", *base, *TINY, *words, "trainer.val_check_interval=10", "trainer.log_every_n_steps=5")
    lost.start().wait()
    stage.row("nan, rollback", "exit code", lost.code)
    metrics = lost.check().json("metrics")
    stage.row("nan, rollback", "rollbacks", metrics["rollbacks"], seconds=0.0)
    stage.row("nan, rollback", "validation loss", metrics["final_val_loss"], seconds=0.0)


def sigterm(stage: Stage, base: list[str]) -> None:
    """From outside, in the middle of a run, which is compiled where there is a GPU."""
    words = [
        *base,
        *TINY,
        "trainer.max_steps=1500",
        "trainer.val_check_interval=1500",
        "trainer.log_every_n_steps=5",
    ]
    words += [f"trainer.compile={'false' if stage.dry else 'true'}"]
    long = stage.run("long", *words).start()
    while not long.poll() and not under_way(long):
        time.sleep(0.002)
    if not long.pid:
        raise Failure(f"it ended before the signal: {long.last_line()}")
    os.kill(long.pid, signal.SIGTERM)
    sent = time.monotonic()
    stage.row("sigterm", "exit code", long.wait().code)
    stage.row("sigterm", "seconds to stop", time.monotonic() - sent, seconds=0.0)
    long.check(3)
    rest = stage.run("rest", f"resume={long.directory}", "trainer.compile=false", directory=long.directory)
    stage.row("sigterm", "resumed, exit code", rest.start().wait().code)
    stage.row("sigterm", "resumed, steps", rest.check().json("metrics")["steps"], seconds=0.0)


def under_way(run: Run) -> bool:
    history = run.directory / "history.csv"
    return history.exists() and history.read_bytes().count(b"\n") > 3
