"""Is a compiled step the eager one, and compiled once? Losses with and without dropout, and dynamo's counters."""

import itertools
import json
import shutil

from cases import Case
from kit import Stage
from measuring import largest_difference
from runs import Run, together

SECONDS = 40
STEPS = 10
NAMES = {"small": ["model=gpt_small"], "modern": ["model=gpt_modern", "optimizer.orthogonalization_dtype=float32"]}
# Two layers as wide as the model's: what one block compiles to, and that there are several.
SIZES = ["model.n_layer=2", "data.batch_size=8"]
TINY = ["model.n_layer=1", "model.n_head=1", "model.n_embd=32", "model.block_size=16", "data.batch_size=2"]
PRECISIONS = {"float32": ("32-true", "<= 1e-4"), "bf16": ("bf16-mixed", "<= 1e-3")}
LOSS = "without dropout, largest difference of the loss to eager"
COUNTS = ("graph breaks", "CUDA graphs skipped", "recompilations")
NO_DROPOUT = {"small": ["model.dropout=0"], "modern": ["model.ngram_embedding.dropout=0", "model.token_dropout=0"]}
DROPOUT = {"small": ["model.dropout=0.2"], "modern": ["model.dropout=0.2"]}


def on_cpu(model: str, precision: str) -> bool:
    """The one case that a dry run compiles, too: it takes a CPU half a minute."""
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
    pairs, repeated = {}, {}
    for model, precision in itertools.product(NAMES, PRECISIONS):
        if stage.wanted(case := f"{model} {precision}"):
            words = [*NAMES[model], *NO_DROPOUT[model], f"trainer.precision={PRECISIONS[precision][0]}"]
            pairs[case] = [one(stage, case, way, *words, *stage.invented()) for way in ("eager", "compiled")]
    for model, name in NAMES.items():
        if not stage.wanted(f"{model}, dropout"):
            continue
        # Every block to train on is the same, and nothing is learned: losses differ by dropout alone.
        text = stage.work / "same.txt"
        text.write_text("a" * 3600 + "ab" * 200)
        words = [
            *name,
            "data=text_file",
            f"data.path={text}",
            *rates(model),
            "trainer.precision=bf16-mixed",
        ]
        words.append("model/initialization=normal")  # gpt_modern begins with logits of 0, whatever is dropped
        dropped, not_dropped = [*words, *DROPOUT[model]], [*words, *NO_DROPOUT[model]]
        repeated[model] = [one(stage, f"{model} dropout {n}", "compiled", *dropped) for n in (1, 2)]
        repeated[model].append(one(stage, f"{model} no dropout", "compiled", *not_dropped))
    ended: list[Run] = []

    def done(run: Run) -> None:
        ended.append(run)
        for case, runs in pairs.items():
            if run in runs and all(one in ended for one in runs):
                report(stage, case, runs)

    runs = [run for some in (*pairs.values(), *repeated.values()) for run in some]
    together(runs, None if stage.dry else 16, done)
    for model, (first, second, none) in repeated.items():
        report_dropout(stage, model, first, second, none)


def report(stage: Stage, case: str, runs: list[Run]) -> None:
    """Eager and compiled, without dropout."""
    with stage.attempt(case):
        eager, compiled = (run.check().history("train_loss") for run in runs)
        stage.row(case, LOSS, largest_difference(losses(eager), losses(compiled)), seconds=runs[1].seconds)
        found = json.loads((runs[1].folder / "counters.json").read_text())
        for count in COUNTS:
            stage.row(case, count, found[count], seconds=0.0)


def report_dropout(stage: Stage, model: str, *runs: Run) -> None:
    """Two runs of one seed with dropout, and one without."""
    with stage.attempt(f"{model}, dropout", f"{model}, no dropout"):
        first, second, none = (losses(run.check().history("train_loss")) for run in runs)
        equal = "same" if first == second else "differ"
        stage.row(f"{model}, dropout", "two runs of one seed", equal, seconds=runs[0].seconds)
        every = all(a != b for a, b in itertools.pairwise(first.values()))
        steps = "differ" if every else "same"
        stage.row(f"{model}, dropout", "two steps on the same block", steps, seconds=0.0)
        spread = max(none.values()) - min(none.values())
        steps = "same" if spread == 0 else f"{spread:g}"
        stage.row(f"{model}, no dropout", "two steps on the same block", steps)


def one(stage: Stage, name: str, way: str, *words: str) -> Run:
    trainer = dict(max_steps=STEPS + 10, val_check_interval=STEPS + 10, log_every_n_steps=1, deterministic="warn")
    trainer |= dict(compile="true" if way == "compiled" else "false")
    settings = [f"trainer.{key}={value}" for key, value in trainer.items()]
    run = stage.run(f"{name} {way}", *words, *(TINY if stage.dry else SIZES), *stage.words(), *settings)
    run.words += ["+callbacks.quit._target_=probes.Quit", f"+callbacks.quit.step={STEPS + 1}"]
    run.words += [f"+callbacks.quit.counters={run.folder}/counters.json"]
    return run


def rates(model: str) -> list[str]:
    return ["optimizer.lr=0", "optimizer.weight_decay=0", *(["optimizer.adamw_lr=0"] if model == "modern" else [])]


def losses(curve: dict[int, float]) -> dict[int, float]:
    return {step: loss for step, loss in curve.items() if step <= STEPS}
