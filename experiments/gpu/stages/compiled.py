"""Compiled steps compared with eager ones: losses with and without dropout, and counters of torch.compile."""

import itertools
import json
import shutil

from cases import Case
from kit import Stage
from measuring import largest_difference
from runs import Run, run_all

SECONDS = 40
STEPS = 10
NAMES = {"small": ["model=gpt_small"], "modern": ["model=gpt_modern", "optimizer.orthogonalization_dtype=float32"]}
# Two layers at full width: enough to test that a block is compiled once for all layers.
SIZES = ["model.n_layer=2", "data.batch_size=8"]
TINY = ["model.n_layer=1", "model.n_head=1", "model.n_embd=32", "model.block_size=16", "data.batch_size=2"]
PRECISIONS = {"float32": ("32-true", "<= 1e-4"), "bf16": ("bf16-mixed", "<= 1e-3")}
LOSS = "without dropout, largest difference of the loss to eager"
COUNTS = ("graph breaks", "CUDA graphs skipped", "recompilations")
NO_DROPOUT = {"small": ["model.dropout=0"], "modern": ["model.ngram_embedding.dropout=0", "model.token_dropout=0"]}
DROPOUT = {"small": ["model.dropout=0.2"], "modern": ["model.dropout=0.2"]}


def on_cpu(model: str, precision: str) -> bool:
    """Whether a dry run includes this case. It includes only one: compiling takes half a minute on a CPU."""
    return (model, precision) == ("small", "float32")


CASES = [Case(f"{m} {p}", LOSS, "nats", PRECISIONS[p][1], not on_cpu(m, p)) for m in NAMES for p in PRECISIONS]
CASES += [
    Case(f"{m} {p}", count, expected="== 0", cuda=not on_cpu(m, p))
    for m in NAMES
    for p in PRECISIONS
    for count in COUNTS
]
for model in NAMES:
    CASES.append(Case(f"{model}, dropout", "two runs of one seed", expected="same", cuda=True))
    CASES.append(Case(f"{model}, dropout", "two steps on the same block", expected="differ", cuda=True))
    CASES.append(Case(f"{model}, no dropout", "two steps on the same block", expected="same", cuda=True))


def run(stage: Stage) -> None:
    if stage.dry and not (shutil.which("c++") or shutil.which("g++")):
        stage.skip("no C++ compiler", "small float32")
    pairs, dropout_runs = {}, {}
    for model, precision in itertools.product(NAMES, PRECISIONS):
        if stage.pending(case := f"{model} {precision}"):
            overrides = [*NAMES[model], *NO_DROPOUT[model], f"trainer.precision={PRECISIONS[precision][0]}"]
            overrides += stage.random_text()
            pairs[case] = [make_run(stage, case, way, *overrides) for way in ("eager", "compiled")]
    for model, name in NAMES.items():
        if not stage.pending(f"{model}, dropout"):
            continue
        # All training blocks are equal and the learning rate is 0: losses differ by dropout only.
        text = stage.work / "same.txt"
        text.write_text("a" * 3600 + "ab" * 200)
        overrides = [*name, "data=text_file", f"data.path={text}", *zero_rates(model), "trainer.precision=bf16-mixed"]
        # The initial logits of gpt_modern are 0, with and without dropout.
        overrides.append("model/initialization=normal")
        with_dropout, without = [*overrides, *DROPOUT[model]], [*overrides, *NO_DROPOUT[model]]
        dropout_runs[model] = [make_run(stage, f"{model} dropout {n}", "compiled", *with_dropout) for n in (1, 2)]
        dropout_runs[model].append(make_run(stage, f"{model} no dropout", "compiled", *without))
    ended: list[Run] = []

    def done(run: Run) -> None:
        ended.append(run)
        for case, runs in pairs.items():
            if run in runs and all(each in ended for each in runs):
                report(stage, case, runs)

    runs = [run for group in (*pairs.values(), *dropout_runs.values()) for run in group]
    run_all(runs, None if stage.dry else 16, done)
    for model, (first, second, none) in dropout_runs.items():
        report_dropout(stage, model, first, second, none)


def report(stage: Stage, case: str, runs: list[Run]) -> None:
    """Sends the rows of an eager and a compiled run, without dropout."""
    with stage.attempt(case):
        eager, compiled = (run.check().history("train_loss") for run in runs)
        stage.row(case, LOSS, largest_difference(losses(eager), losses(compiled)), seconds=runs[1].seconds)
        counters = json.loads((runs[1].folder / "counters.json").read_text())
        for count in COUNTS:
            stage.row(case, count, counters[count], seconds=0.0)


def report_dropout(stage: Stage, model: str, *runs: Run) -> None:
    """Sends the rows of two runs of one seed with dropout, and one without."""
    with stage.attempt(f"{model}, dropout", f"{model}, no dropout"):
        first, second, none = (losses(run.check().history("train_loss")) for run in runs)
        equal = "same" if first == second else "differ"
        stage.row(f"{model}, dropout", "two runs of one seed", equal, seconds=runs[0].seconds)
        all_differ = all(a != b for a, b in itertools.pairwise(first.values()))
        steps = "differ" if all_differ else "same"
        stage.row(f"{model}, dropout", "two steps on the same block", steps, seconds=0.0)
        spread = max(none.values()) - min(none.values())
        steps = "same" if spread == 0 else f"{spread:g}"
        stage.row(f"{model}, no dropout", "two steps on the same block", steps)


def make_run(stage: Stage, name: str, way: str, *overrides: str) -> Run:
    trainer = dict(max_steps=STEPS + 10, val_check_interval=STEPS + 10, log_every_n_steps=1, deterministic="warn")
    trainer |= dict(compile="true" if way == "compiled" else "false")
    settings = [f"trainer.{key}={value}" for key, value in trainer.items()]
    run = stage.run(f"{name} {way}", *overrides, *(TINY if stage.dry else SIZES), *stage.overrides(), *settings)
    run.overrides += ["+callbacks.quit._target_=probes.Quit", f"+callbacks.quit.step={STEPS + 1}"]
    run.overrides += [f"+callbacks.quit.counters={run.folder}/counters.json"]
    return run


def zero_rates(model: str) -> list[str]:
    return ["optimizer.lr=0", "optimizer.weight_decay=0", *(["optimizer.adamw_lr=0"] if model == "modern" else [])]


def losses(curve: dict[int, float]) -> dict[int, float]:
    return {step: loss for step, loss in curve.items() if step <= STEPS}
