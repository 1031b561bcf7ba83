"""Does a run that was cut off end with the bits of the uncut one? 20 steps against 10 and 10, and `rerun=`."""

from cases import Case, Failure
from kit import Stage
from measuring import same_bits
from runs import Run, together

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
TIMES = ("_seconds", "_second")  # how the names of timing metrics end


def run(stage: Stage) -> None:
    cases = [(model, way) for way in WAYS for model in MODELS if stage.wanted(f"{model} {way}")]
    first, cut = {}, {}
    for model, way in cases:
        trainer = dict(max_steps=STEPS, val_check_interval=STEPS, log_every_n_steps=1, deterministic="true")
        settings = [f"trainer.{key}={value}" for key, value in (trainer | dict(compile=WAYS[way])).items()]
        words = [
            *MODELS[model],
            *(TINY if stage.dry else ["model.n_layer=2"]),
            *stage.words(*stage.invented()),
            *settings,
        ]
        stop = ["+callbacks.stop._target_=probes.Signal", f"+callbacks.stop.step={STEPS // 2}"]
        first[model, way] = stage.run(f"{model} {way} uncut", *words)
        cut[model, way] = stage.run(f"{model} {way} cut", *words, *stop)
    slots = None if stage.dry else 16
    together([*first.values(), *cut.values()], slots)
    resumed = {
        case: stage.run(f"{case} resumed", f"resume={run.directory}", directory=run.directory)
        for case, run in cut.items()
        if run.code == 3
    }
    again = {
        case: stage.run(f"{case} again", f"rerun={run.directory}", "callbacks.samples.max_new_tokens=0")
        for case, run in first.items()
    }
    together([*resumed.values(), *again.values()], slots)
    for case in cases:
        with stage.attempt(" ".join(case)):
            cut[case].check(3)
            compare(stage, " ".join(case), first[case].check(), resumed[case].check(), again[case].check())


def compare(stage: Stage, case: str, uncut: Run, resumed: Run, again: Run) -> None:
    seconds = uncut.seconds + resumed.seconds
    one, other = uncut.checkpoint(), resumed.checkpoint()
    if one["global_step"] != STEPS:
        raise Failure(f"the uncut run has {one['global_step']} steps")
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    where = same_bits(*({key: whole[key] for key in keys} for whole in (one, other)))
    stage.row(case, METRICS[0], f"differs in {where}" if where else "same", seconds=seconds)
    where = same_bits(*({column: run.history(column) for column in COLUMNS} for run in (uncut, resumed)))
    stage.row(case, METRICS[1], f"differs in {where}" if where else "same", seconds=seconds)
    figures = [{k: v for k, v in run.json("metrics").items() if not k.endswith(TIMES)} for run in (uncut, again)]
    where = same_bits(*figures)
    stage.row(case, METRICS[2], f"differs in {where}" if where else "same", seconds=again.seconds)
