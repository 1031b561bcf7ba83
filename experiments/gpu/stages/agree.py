"""Do models and optimizers compute on this device what they compute on a CPU? 20 steps against reference.csv."""

import csv
import itertools
import os
import sys
from pathlib import Path

from cases import HERE, Case
from kit import Stage
from measuring import largest_difference
from runs import Run, together

SECONDS = 25
STEPS = 20
REFERENCE = HERE / "reference.csv"
MODELS = {
    "small": ["model=gpt_small", "model.dropout=0", "data.batch_size=2"],
    "modern": ["model=gpt_modern", "model.dropout=0", "model.ngram_embedding.dropout=0", "model.token_dropout=0"],
    "ensemble": ["model=gpt_ensemble", "model.members=2", "model.ngram_embedding.dropout=0", "model.token_dropout=0"],
}
FLOAT32 = "optimizer.orthogonalization_dtype=float32"
# Rates at which 20 steps change the loss, and rounding does not grow.
OPTIMIZERS = {
    "adamw": ["optimizer=adamw", "optimizer.lr=3e-4"],
    "muon": ["optimizer=muon", "optimizer.lr=5e-4", "optimizer.adamw_lr=1e-4", FLOAT32],
    "soap": ["optimizer=soap", "optimizer.lr=3e-4", "optimizer.adamw_lr=3e-4"],
    "sgd": ["optimizer=sgd", "optimizer.lr=3e-4"],
}
PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed"}
TOLERANCES = {"float32": "<= 1e-4", "bf16": "<= 2e-2"}
SOAP = {"float32": "<= 1e-2", "bf16": "<= 2e-2"}  # README, "How closely SOAP agrees"


BATCHED = "soap batched"  # the same mathematics as soap, whose losses it is compared with
PARTS = [*itertools.product(MODELS, OPTIMIZERS, PRECISIONS), *((model, BATCHED, "float32") for model in MODELS)]


def name(model: str, optimizer: str, precision: str) -> str:
    return f"{model} {optimizer} {precision}"


CASES = [
    Case(
        name(*parts),
        "largest difference of the loss",
        "nats",
        (SOAP if parts[1].startswith("soap") else TOLERANCES)[parts[2]],
    )
    for parts in PARTS
]


def words(model: str, optimizer: str, precision: str) -> list[str]:
    # Of 384 x 1536, Muon's and SOAP's products alone would take a CPU minutes.
    narrow = model == "small" and optimizer in ("muon", "soap", BATCHED)
    smaller = ["model.n_layer=2", "model.n_embd=96"] if narrow else []
    trainer = dict(precision=PRECISIONS[precision], max_steps=STEPS + 10, val_check_interval=STEPS + 10)
    trainer |= dict(log_every_n_steps=1, deterministic="warn", gradient_clip_val="null", compile="false")
    leave = ["+callbacks.quit._target_=probes.Quit", f"+callbacks.quit.step={STEPS + 1}"]
    settings = [f"trainer.{key}={value}" for key, value in trainer.items()]
    model_words = [*MODELS[model], *smaller, "model.block_size=64", "data.batch_size=2"]
    rates = [*OPTIMIZERS["soap"], "optimizer.batched=true"] if optimizer == BATCHED else OPTIMIZERS[optimizer]
    return [*model_words, *rates, "schedule=constant", *settings, *leave]


def loss_curve(run: Run) -> dict[int, float]:
    return {step: loss for step, loss in run.check().history("train_loss").items() if step <= STEPS}


def reference() -> dict[str, dict[int, float]]:
    """Model and optimizer -> the loss of each step on a CPU in float32."""
    with REFERENCE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: {int(row["step"]): float(row[key]) for row in rows} for key in rows[0] if key != "step"}


def run(stage: Stage) -> None:
    before = reference()
    cases = {name(*parts): parts for parts in PARTS}

    def compare(run: Run) -> None:
        with stage.attempt(run.name):
            model, optimizer, _ = cases[run.name]
            key = f"{model} {optimizer.removesuffix(' batched')}"
            difference = largest_difference(before[key], loss_curve(run))
            stage.row(run.name, CASES[0].metric, difference, seconds=run.seconds)

    runs = [stage.run(key, *stage.words(*stage.invented()), *words(*parts)) for key, parts in cases.items()]
    together(runs, done=compare)


def on_this_cpu(work: Path, noise: float = 0.0, seed: int = 0) -> dict[str, dict[int, float]]:
    """Every curve of the reference, computed here; with relative noise on each gradient if asked for."""
    stage = Stage("agree", CASES, work, dry=True, out=sys.stderr, lock=Path(os.devnull))
    stage.forks = False
    words_of = {" ".join(pair): words(*pair, "float32") for pair in itertools.product(MODELS, OPTIMIZERS)}
    probe = dict(_target_="probes.Noise", relative=noise, seed=seed)
    more = [f"+callbacks.noise.{key}={value}" for key, value in probe.items()] if noise else []
    base = [*stage.words(*stage.invented()), *more]
    runs = together([stage.run(f"{key} {seed}", *base, *words, threads=1) for key, words in words_of.items()])
    return dict(zip(words_of, map(loss_curve, runs), strict=True))


def write_reference(work: Path) -> None:
    """reference.csv, by this machine's CPU: python experiments/gpu/run.py --reference."""
    curves = on_this_cpu(work)
    with REFERENCE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *curves])
        writer.writerows([step, *(curve[step] for curve in curves.values())] for step in range(1, STEPS + 1))


def print_noise(work: Path, relative: float) -> None:
    """What rounding does to each curve: python experiments/gpu/run.py --noise 1e-6."""
    before = reference()
    for seed in (1, 2, 3):
        for key, curve in on_this_cpu(work, relative, seed).items():
            print(f"seed {seed}, {key}: {largest_difference(before[key], curve):.2g}", flush=True)
