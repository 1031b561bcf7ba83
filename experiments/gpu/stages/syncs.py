"""Does the CPU wait for the device between two log points? It must not: then kernels are always queued."""

import json

from cases import Case
from kit import Stage
from runs import together

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
    base += stage.words(*stage.invented()) + (TINY if stage.dry else [])
    runs = []
    for model, words in MODELS.items():
        for limit, more in LIMITS.items():
            name = f"{model}{limit}"
            probe = [
                "+callbacks.syncs._target_=probes.Syncs",
                f"+callbacks.syncs.file={stage.work}/{len(runs)}.json",
            ]
            runs.append(stage.run(name, *words, *base, *more, *probe))
    for number, run in enumerate(together(runs)):
        with stage.attempt(run.name):
            run.check()
            found = json.loads((stage.work / f"{number}.json").read_text())
            places = f" ({', '.join(found['places'])})" if found["places"] else ""
            stage.row(run.name, METRIC, f"{found['count']}{places}", "failed" if places else None, run.seconds)
