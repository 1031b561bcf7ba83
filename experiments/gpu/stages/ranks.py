"""Distributed runs: one rank, two ranks on one device, a rank that raises, DDP and FSDP."""

import contextlib
import random
import shutil
import socket
import time

from cases import Case, Failure
from kit import Stage
from runs import Run, run_all

SECONDS = 60
STEPS = 20
TINY = ["model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.block_size=32", "data.batch_size=4"]
LOSS = "validation loss, difference to one process"
NEAR = "<= 1e-3"
CASES = [
    Case("one rank", LOSS, "nats", NEAR),
    Case("two ranks", LOSS, "nats", NEAR),
    Case("two ranks on the CPU, own launcher", LOSS, "nats", NEAR),
    Case("a rank raises", "exit code", expected="== 1"),
    Case("a rank raises", "error_rank_1.txt", expected="exists"),
    Case("a rank raises", "seconds from the error to the exit", "s", "<= 15"),
    Case("a rank raises", "the other rank"),
    Case("fsdp", LOSS, "nats", NEAR),
    Case("fsdp", "weight decay of the optimizer's groups", expected="0.1 and 0.0"),
    Case("fsdp, bf16", LOSS, "nats", "<= 2e-2", cuda=True),
    Case("ddp, then fsdp", LOSS, "nats", NEAR),
    Case("fsdp, then fsdp", LOSS, "nats", NEAR),
    Case("fsdp, then ddp", LOSS, "nats", NEAR),
]
# Two ranks on one GPU: NCCL treats them as two machines that communicate by sockets.
SOCKETS = {
    "NCCL_P2P_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",
    "NCCL_IB_DISABLE": "1",
    "NCCL_NET": "Socket",
    "NCCL_NET_PLUGIN": "none",
    "NCCL_SOCKET_IFNAME": "lo",
    "GLOO_SOCKET_IFNAME": "lo",
}


def ranks(stage: Stage, name: str, *overrides: str, world_size: int = 2, directory=None) -> list[Run]:
    """The processes of a run, with the environment of torchrun for one process per machine."""
    port = free_port()
    shared = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(world_size), TORCHELASTIC_RUN_ID=name)
    shared |= dict(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", **SOCKETS)
    run_directory = directory or stage.work / f"{name} run"
    new_run = [] if directory else [f"hydra.run.dir={run_directory}"]
    return [
        stage.run(
            f"{name} {r}",
            *overrides,
            *new_run,
            directory=run_directory,
            RANK=str(r),
            GROUP_RANK=str(r),
            NCCL_HOSTID=str(r),
            **shared,
        )
        for r in range(world_size)
    ]


def free_port() -> int:
    """A port that is not in use, below the range of ephemeral ports."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run(stage: Stage) -> None:
    sizes = TINY if stage.dry else ["data.batch_size=12"]
    trainer = dict(max_steps=STEPS, val_check_interval=STEPS // 2, log_every_n_steps=5, precision="32-true")
    trainer |= dict(deterministic="warn", compile="false")
    base = [*stage.random_text(), "model=gpt_nano", *sizes, "schedule=constant", "optimizer.weight_decay=0.1"]
    base += [f"trainer.{key}={value}" for key, value in trainer.items()] + stage.overrides()
    ddp = [*base, "trainer.strategy=ddp"]
    fsdp = [*base, "trainer.strategy=fsdp"]
    half = f"trainer.max_steps={STEPS // 2}"
    callback = dict(_target_="probes.Raise", rank=1, step=5)
    raise_error = [f"+callbacks.raise.{key}={value}" for key, value in callback.items()]
    groups = {
        "one process": [stage.run("one process", *base)],
        "one rank": ranks(stage, "one rank", *ddp, world_size=1),
        "two ranks": ranks(stage, "two ranks", *ddp),
        "fsdp": ranks(stage, "fsdp", *fsdp),
        "ddp, half": ranks(stage, "ddp half", *ddp, half),
        "fsdp, half": ranks(stage, "fsdp half", *fsdp, half),
    }
    if stage.pending("fsdp, bf16"):
        groups["fsdp, bf16"] = ranks(stage, "fsdp bf16", *fsdp, "trainer.precision=bf16-mixed")
    launcher = "two ranks on the CPU, own launcher"
    groups[launcher] = [stage.run("launcher", *base, "trainer.accelerator=cpu", "trainer.devices=2")]
    run_all([run for group in groups.values() for run in group])
    second_halves = resumed(stage, groups)
    run_all([run for group in second_halves.values() for run in group])
    groups |= second_halves
    for name in ("one rank", "two ranks", launcher, "fsdp", "fsdp, bf16", *second_halves):
        if name not in groups:
            continue
        with stage.attempt(name):
            (single,) = groups["one process"]
            losses = [group[0].json("metrics")["final_val_loss"] for group in map(checked, ([single], groups[name]))]
            devices = groups[name][0].json("metrics")["devices"]
            if devices != (1 if name == "one rank" else 2):
                raise Failure(f"{devices} processes trained the model")
            stage.row(name, LOSS, abs(losses[0] - losses[1]), seconds=groups[name][0].seconds)
            if name == "fsdp":
                (state,) = groups[name][0].checkpoint()["optimizer_states"]
                decays = " and ".join(str(group["weight_decay"]) for group in state["param_groups"])
                stage.row(name, "weight decay of the optimizer's groups", decays, seconds=0.0)
    with stage.attempt("a rank raises"):
        failing_rank(stage, ranks(stage, "raises", *ddp, *raise_error))


def resumed(stage: Stage, groups: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """The second halves, each in a copy of the first half's directory."""
    result = {}
    for name, first, strategy in (
        ("ddp, then fsdp", "ddp, half", "fsdp"),
        ("fsdp, then fsdp", "fsdp, half", "fsdp"),
        ("fsdp, then ddp", "fsdp, half", "ddp"),
    ):
        with stage.attempt(name):
            (source, *_) = checked(groups[first])
            copy = shutil.copytree(source.directory, stage.work / f"{name} run")
            overrides = [f"resume={copy}", f"trainer.strategy={strategy}", f"trainer.max_steps={STEPS}"]
            result[name] = ranks(stage, name.replace(",", ""), *overrides, directory=copy)
    return result


def checked(group: list[Run]) -> list[Run]:
    return [run.check() for run in group]


def failing_rank(stage: Stage, pair: list[Run]) -> None:
    """Acts as torchrun: waits for the rank that raises, and kills the other rank 10 s later."""
    for rank in pair:
        rank.threads = 1
        rank.start()
    other, failed = pair
    while not failed.poll():
        other.poll()
        time.sleep(0.01)
    error = failed.directory / "error_rank_1.txt"
    stage.row("a rank raises", "exit code", failed.code)
    stage.row("a rank raises", "error_rank_1.txt", "exists" if error.exists() else "missing", seconds=0.0)
    if not error.exists():
        raise Failure(f"no error_rank_1.txt: {failed.last_line()}")
    seconds = time.time() - error.stat().st_mtime
    stage.row("a rank raises", "seconds from the error to the exit", seconds, seconds=0.0)
    deadline = time.monotonic() + 10
    while not other.poll() and time.monotonic() < deadline:
        time.sleep(0.01)
    outcome = "still running after 10 s, killed" if other.pid else f"exited with code {other.code}"
    other.kill()
    stage.row("a rank raises", "the other rank", outcome)
