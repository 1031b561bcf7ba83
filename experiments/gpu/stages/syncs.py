"""Synchronizations of CPU and device between log points: there must be none, so that kernels are always queued."""

import json

from cases import Case
from kit import Stage
from runs import run_all

SECONDS = 5
METRIC = "synchronizations between log points"
MODELS = {"small adamw": ["model=gpt_small"], "modern muon": ["model=gpt_modern"]}
LIMITS = {"": [], ", max_time": ["trainer.max_time=1000"]}
CASES = [Case(f"{model}{limit}", METRIC, expected="== 0") for model in MODELS for limit in LIMITS]
TINY = ["model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.block_size=32"]
STEPS = 20


def run(stage: Stage) -> None:
    trainer = dict(max_steps=STEPS, val_check_interval=STEPS, log_every_n_steps=5, compile="false")
    base = [f"trainer.{key}={value}" for key, value in trainer.items()] + ["data.batch_size=4"]
    base += stage.overrides(*stage.random_text()) + (TINY if stage.dry else [])
    runs = []
    for model, model_overrides in MODELS.items():
        for limit, limit_overrides in LIMITS.items():
            name = f"{model}{limit}"
            probe = [
                "+callbacks.syncs._target_=probes.Syncs",
                f"+callbacks.syncs.file={stage.work}/{len(runs)}.json",
            ]
            runs.append(stage.run(name, *model_overrides, *base, *limit_overrides, *probe))
    for number, run in enumerate(run_all(runs)):
        with stage.attempt(run.name):
            run.check()
            result = json.loads((stage.work / f"{number}.json").read_text())
            places = f" ({', '.join(result['places'])})" if result["places"] else ""
            stage.row(run.name, METRIC, f"{result['count']}{places}", "failed" if places else None, run.seconds)
