"""`python train.py model=gpt_modern`, with three seeds in parallel."""

import statistics

from cases import Case
from kit import Stage
from runs import run_all

SECONDS = 25
SEEDS = (1, 2, 3)
LOSS = "validation loss"
CASES = [
    *(Case(f"gpt_modern, seed {seed}", LOSS, "nats", "< 1.56", dry="") for seed in SEEDS),
    Case("gpt_modern, mean", LOSS, "nats", "< 1.56", dry=""),
    Case("gpt_modern, mean", "training, three side by side", "s"),
    Case("gpt_modern, mean", "the whole process, three side by side", "s"),
]
TINY = ["model.n_layer=1", "model.n_head=1", "model.n_embd=16", "model.block_size=16", "data.batch_size=2"]
TINY += ["trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.log_every_n_steps=2"]


def run(stage: Stage) -> None:
    overrides = ["model=gpt_modern", *stage.corpus(), *(TINY if stage.dry else []), *stage.overrides()]
    runs = run_all([stage.run(f"gpt_modern, seed {seed}", *overrides, f"seed={seed}") for seed in SEEDS])
    losses = []
    for run in runs:
        with stage.attempt(run.name):
            losses.append(run.check().json("metrics")["val_loss"])
            stage.row(run.name, LOSS, losses[-1], seconds=run.seconds)
    with stage.attempt("gpt_modern, mean"):
        seconds = [run.check().json("metrics")["train_seconds"] for run in runs]
        stage.row("gpt_modern, mean", LOSS, statistics.mean(losses), seconds=0.0)
        stage.row("gpt_modern, mean", "training, three side by side", statistics.mean(seconds), seconds=0.0)
        process_seconds = statistics.mean(run.seconds for run in runs)
        stage.row("gpt_modern, mean", "the whole process, three side by side", process_seconds, seconds=0.0)
