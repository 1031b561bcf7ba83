"""Two runs on one GPU: in parallel, compared with one after the other."""

import importlib.metadata
import time

from cases import Case
from kit import Stage
from runs import run_all

SECONDS = 30
STEPS = 300
CASES = [
    Case("two processes", "one after the other", "s"),
    Case("two processes", "side by side", "s"),
    Case("two processes", "side by side over one after the other", "", "< 2", dry=""),
    Case("ray, hydra.launcher.gpus=0.5", "side by side", "s", cuda=True),
]
TINY = ["model.n_layer=1", "model.n_head=1", "model.n_embd=16", "model.block_size=16", "data.batch_size=2"]


def run(stage: Stage) -> None:
    steps = 20 if stage.dry else STEPS
    overrides = [
        "model=gpt_modern",
        *stage.corpus(),
        *(TINY if stage.dry else []),
        *stage.overrides(),
        "trainer.compile=false",
    ]
    overrides += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
    with stage.attempt("two processes"):
        seconds = {}
        for name, slots in (("one after the other", 1), ("side by side", 2)):
            start = time.monotonic()
            pair = [stage.run(f"{name} {seed}", *overrides, f"seed={seed}", threads=1) for seed in (1, 2)]
            for run in run_all(pair, slots):
                run.check()
            seconds[name] = time.monotonic() - start
            stage.row("two processes", name, seconds[name])
        ratio = seconds["side by side"] / seconds["one after the other"]
        stage.row("two processes", "side by side over one after the other", ratio, seconds=0.0)
    ray = "ray, hydra.launcher.gpus=0.5"
    with stage.attempt(ray):
        if not stage.pending(ray):
            return
        if not installed("ray"):
            stage.skip("ray is not installed", ray)
            return
        sweep = ["-m", "hydra/launcher=gpus", "hydra.launcher.gpus=0.5", "seed=1,2"]
        sweep += [f"hydra.sweep.dir={stage.work}/ray"]
        start = time.monotonic()
        stage.run("ray", *sweep, *overrides, directory=stage.work / "ray").start().wait().check()
        stage.row(ray, "side by side", time.monotonic() - start)


def installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
