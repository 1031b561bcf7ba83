"""Bitwise comparison of an uninterrupted run of 20 steps with a resumed one, 10 + 10; and `rerun=`."""

from cases import Case, Failure
from kit import Stage
from measuring import first_difference
from runs import Run, run_all

SECONDS = 35
STEPS = 20
TINY = ["model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.block_size=32", "data.batch_size=4"]
MODELS = {"small": ["model=gpt_small"], "modern": ["model=gpt_modern", "model.dropout=0.1"]}
WAYS = {"eager": "false", "compiled": "true"}
METRICS = ("weights and optimizer", "curves", "rerun")
CASES = [
    Case(f"{model} {way}", metric, expected="same", cuda=way == "compiled")
    for way in WAYS
    for model in MODELS
    for metric in METRICS
]
COLUMNS = ("train_loss", "val_loss", "lr", "grad_norm")
TIMES = ("_seconds", "_second")  # suffixes of timing metrics


def run(stage: Stage) -> None:
    cases = [(model, way) for way in WAYS for model in MODELS if stage.pending(f"{model} {way}")]
    uninterrupted, interrupted = {}, {}
    for model, way in cases:
        trainer = dict(max_steps=STEPS, val_check_interval=STEPS, log_every_n_steps=1, deterministic="true")
        settings = [f"trainer.{key}={value}" for key, value in (trainer | dict(compile=WAYS[way])).items()]
        overrides = [*MODELS[model], *(TINY if stage.dry else ["model.n_layer=2"])]
        overrides += [*stage.overrides(*stage.random_text()), *settings]
        stop = ["+callbacks.stop._target_=probes.Signal", f"+callbacks.stop.step={STEPS // 2}"]
        uninterrupted[model, way] = stage.run(f"{model} {way} uninterrupted", *overrides)
        interrupted[model, way] = stage.run(f"{model} {way} interrupted", *overrides, *stop)
    slots = None if stage.dry else 16
    run_all([*uninterrupted.values(), *interrupted.values()], slots)
    resumed = {
        case: stage.run(f"{case} resumed", f"resume={run.directory}", directory=run.directory)
        for case, run in interrupted.items()
        if run.code == 3
    }
    repeated = {
        case: stage.run(f"{case} repeated", f"rerun={run.directory}", "callbacks.samples.max_new_tokens=0")
        for case, run in uninterrupted.items()
    }
    run_all([*resumed.values(), *repeated.values()], slots)
    for case in cases:
        with stage.attempt(" ".join(case)):
            interrupted[case].check(3)
            runs = [group[case].check() for group in (uninterrupted, resumed, repeated)]
            compare(stage, " ".join(case), *runs)


def compare(stage: Stage, case: str, uninterrupted: Run, resumed: Run, repeated: Run) -> None:
    seconds = uninterrupted.seconds + resumed.seconds
    one, other = uninterrupted.checkpoint(), resumed.checkpoint()
    if one["global_step"] != STEPS:
        raise Failure(f"the uninterrupted run has {one['global_step']} steps")
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    place = first_difference(*({key: checkpoint[key] for key in keys} for checkpoint in (one, other)))
    stage.row(case, METRICS[0], f"differs in {place}" if place else "same", seconds=seconds)
    place = first_difference(*({column: run.history(column) for column in COLUMNS} for run in (uninterrupted, resumed)))
    stage.row(case, METRICS[1], f"differs in {place}" if place else "same", seconds=seconds)
    runs = (uninterrupted, repeated)
    metrics = [{k: v for k, v in run.json("metrics").items() if not k.endswith(TIMES)} for run in runs]
    place = first_difference(*metrics)
    stage.row(case, METRICS[2], f"differs in {place}" if place else "same", seconds=repeated.seconds)
