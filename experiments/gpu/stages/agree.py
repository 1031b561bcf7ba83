"""Losses of 20 steps on this device, compared with those of a CPU in reference.csv."""

import csv
import itertools
import os
import sys
from pathlib import Path

from cases import HERE, Case
from kit import Stage
from measuring import largest_difference
from runs import Run, run_all

SECONDS = 25
STEPS = 20
REFERENCE = HERE / "reference.csv"
MODELS = {
    "small": ["model=gpt_small", "model.dropout=0", "data.batch_size=2"],
    "modern": ["model=gpt_modern", "model.dropout=0", "model.ngram_embedding.dropout=0", "model.token_dropout=0"],
    "ensemble": ["model=gpt_ensemble", "model.members=2", "model.ngram_embedding.dropout=0", "model.token_dropout=0"],
}
FLOAT32 = "optimizer.orthogonalization_dtype=float32"
# Learning rates at which 20 steps change the loss and rounding errors do not grow.
OPTIMIZERS = {
    "adamw": ["optimizer=adamw", "optimizer.lr=3e-4"],
    "muon": ["optimizer=muon", "optimizer.lr=5e-4", "optimizer.adamw_lr=1e-4", FLOAT32],
    "soap": ["optimizer=soap", "optimizer.lr=3e-4", "optimizer.adamw_lr=3e-4"],
    "sgd": ["optimizer=sgd", "optimizer.lr=3e-4"],
}
PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed"}
TOLERANCES = {"float32": "<= 1e-4", "bf16": "<= 2e-2"}
SOAP = {"float32": "<= 1e-2", "bf16": "<= 2e-2"}  # see "Tolerances" in README.md


BATCHED = "soap batched"  # mathematically equal to soap, and compared with its losses
COMBINATIONS = [*itertools.product(MODELS, OPTIMIZERS, PRECISIONS), *((model, BATCHED, "float32") for model in MODELS)]


def name(model: str, optimizer: str, precision: str) -> str:
    return f"{model} {optimizer} {precision}"


CASES = [
    Case(
        name(*combination),
        "largest difference of the loss",
        "nats",
        (SOAP if combination[1].startswith("soap") else TOLERANCES)[combination[2]],
    )
    for combination in COMBINATIONS
]


def overrides(model: str, optimizer: str, precision: str) -> list[str]:
    # With matrices of 384 x 1536, the products of Muon and SOAP alone would take minutes on a CPU.
    reduced = model == "small" and optimizer in ("muon", "soap", BATCHED)
    smaller = ["model.n_layer=2", "model.n_embd=96"] if reduced else []
    trainer = dict(precision=PRECISIONS[precision], max_steps=STEPS + 10, val_check_interval=STEPS + 10)
    trainer |= dict(log_every_n_steps=1, deterministic="warn", gradient_clip_val="null", compile="false")
    quit_run = ["+callbacks.quit._target_=probes.Quit", f"+callbacks.quit.step={STEPS + 1}"]
    settings = [f"trainer.{key}={value}" for key, value in trainer.items()]
    sizes = [*MODELS[model], *smaller, "model.block_size=64", "data.batch_size=2"]
    batched = ["optimizer.batched=true"] if optimizer == BATCHED else []
    rates = [*OPTIMIZERS[optimizer.removesuffix(" batched")], *batched]
    return [*sizes, *rates, "schedule=constant", *settings, *quit_run]


def loss_curve(run: Run) -> dict[int, float]:
    return {step: loss for step, loss in run.check().history("train_loss").items() if step <= STEPS}


def reference() -> dict[str, dict[int, float]]:
    """The losses on a CPU in float32: model and optimizer -> step -> loss."""
    with REFERENCE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: {int(row["step"]): float(row[key]) for row in rows} for key in rows[0] if key != "step"}


def run(stage: Stage) -> None:
    expected = reference()
    cases = {name(*combination): combination for combination in COMBINATIONS}

    def compare(run: Run) -> None:
        with stage.attempt(run.name):
            model, optimizer, _ = cases[run.name]
            key = f"{model} {optimizer.removesuffix(' batched')}"
            difference = largest_difference(expected[key], loss_curve(run))
            stage.row(run.name, CASES[0].metric, difference, seconds=run.seconds)

    base = stage.overrides(*stage.random_text())
    run_all([stage.run(key, *base, *overrides(*combination)) for key, combination in cases.items()], done=compare)


def on_this_cpu(work: Path, noise: float = 0.0, seed: int = 0) -> dict[str, dict[int, float]]:
    """Computes the curves of the reference on this machine, with optional relative noise on the gradients."""
    stage = Stage("agree", CASES, work, dry=True, out=sys.stderr, lock=Path(os.devnull))
    stage.can_fork = False
    overrides_of = {" ".join(pair): overrides(*pair, "float32") for pair in itertools.product(MODELS, OPTIMIZERS)}
    probe = dict(_target_="probes.Noise", relative=noise, seed=seed)
    more = [f"+callbacks.noise.{key}={value}" for key, value in probe.items()] if noise else []
    base = [*stage.overrides(*stage.random_text()), *more]
    runs = run_all([stage.run(f"{key} {seed}", *base, *each, threads=1) for key, each in overrides_of.items()])
    return dict(zip(overrides_of, map(loss_curve, runs), strict=True))


def write_reference(work: Path) -> None:
    """Writes reference.csv, computed on this machine's CPU: python experiments/gpu/run.py --reference."""
    curves = on_this_cpu(work)
    with REFERENCE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *curves])
        writer.writerows([step, *(curve[step] for curve in curves.values())] for step in range(1, STEPS + 1))


def print_noise(work: Path, relative: float) -> None:
    """Prints how much noise changes each curve: python experiments/gpu/run.py --noise 1e-6."""
    expected = reference()
    for seed in (1, 2, 3):
        for key, curve in on_this_cpu(work, relative, seed).items():
            print(f"seed {seed}, {key}: {largest_difference(expected[key], curve):.2g}", flush=True)
