"""Characters a second on the GPU and the CPU, against nanoGPT's; and whether the texts are the same."""

import inspect
import itertools
import time
from collections.abc import Callable
from typing import Any

from cases import Case, Failure
from kit import Stage
from measuring import nanogpt
from runs import Run, measured

SECONDS = 20
SPEED, SAME = "speed", "text at temperature 0"
DEVICES = {"cpu": False, "gpu": True}  # whether it needs CUDA
CASES = [
    Case("sample.py", SAME, expected="same"),  # as the Python API's
    Case("sample.py on the gpu", SAME, expected="same", cuda=True),  # as on the CPU
    Case("cpu, eight texts", SAME, expected="same"),  # each of them as the one
    Case("gpu, eight texts", SAME, expected="same", cuda=True),
    Case("gpu, one text, cuda graph", SAME, expected="same", cuda=True),
    Case("gpu, eight texts, cuda graph", SAME, expected="same", cuda=True),
    *(
        Case(f"{device}, {texts}{graph}", SPEED, "characters/s", "> 0", cuda)
        for device, cuda in DEVICES.items()
        for graph in ("", ", cuda graph")[: 1 + cuda]
        for texts in ("one text", "eight texts")
    ),
    *(Case(f"nanogpt, {device}, one text", SPEED, "characters/s", "> 0", cuda) for device, cuda in DEVICES.items()),
]
TINY = ["model.n_layer=2", "model.n_head=2", "model.n_embd=64", "model.block_size=64"]


def prepare(stage: Stage) -> None:
    """A model that is overfitted to its text, so that its likeliest character leads clearly on every device."""
    steps = 150 if stage.dry else 300
    words = ["model=gpt_small", *(TINY if stage.dry else []), "model.dropout=0", "optimizer.lr=1e-3"]
    words += ["data.batch_size=16", f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
    stage.trained = stage.run("trained", *words, *stage.words(*stage.invented()), "trainer.compile=false")
    stage.trained.start().wait()


def run(stage: Stage) -> None:
    names = [case.name for case in stage.cases]
    with stage.attempt(*names):
        run = stage.trained.check()
        length = 100 if stage.dry else 250
        outcome = measured(stage, "cpu texts", lambda: texts(run, "cpu", length))
        report(stage, "cpu", outcome, outcome["one text"]["text"])
        written = sampled(stage, run, "cpu", length)
        same = "same" if written == outcome["one text"]["text"] else f"another: {written[:60]!r}"
        stage.row("sample.py", SAME, same)
        if not stage.dry:
            report(stage, "gpu", measured(stage, "gpu texts", lambda: texts(run, "cuda", length)), written)
            gpu = sampled(stage, run, "cuda", length)
            stage.row("sample.py on the gpu", SAME, "same" if gpu == written else f"another: {gpu[:60]!r}")
        for device, name in (("cpu", "cpu"), ("cuda", "gpu")):
            with stage.attempt(case := f"nanogpt, {name}, one text"):
                if not stage.wanted(case):
                    continue
                try:
                    nanogpt()
                except Failure as absent:
                    stage.skip(str(absent), case)
                    continue
                stage.row(case, SPEED, measured(stage, case, lambda: theirs(stage, device, length))["speed"])  # noqa: B023


def report(stage: Stage, device: str, outcome: dict[str, Any], expected: str) -> None:
    """Speeds, and texts that are not the one expected."""
    for name, found in outcome.items():
        case = f"{device}, {name}"
        if "error" in found:
            stage.skip(found["error"], case) if found["error"].startswith("no ") else stage.fail(found["error"], case)
            continue
        stage.row(case, SPEED, found["speed"], seconds=found["seconds"])
        if stage.declared(case, SAME):
            stage.row(case, SAME, "same" if found["text"] == expected else f"another: {found['text'][:60]!r}")


def sampled(stage: Stage, run: Run, device: str, length: int) -> str:
    """What sample.py writes, without the line break at its end."""
    words = [f"run={run.directory}", f"device={device}", "temperature=0", f"max_new_tokens={length}", "prompt=The"]
    done = stage.run(f"sample {device}", *words, verb="sample").start().wait().check()
    return done.out.read_text()[:-1]


def texts(run: Run, device: str, length: int) -> dict[str, Any]:
    """One text and eight, by the public API; on a GPU also with a CUDA graph for a token."""
    import chargpt

    trained = chargpt.load(run.directory, device)
    found: dict[str, Any] = {}
    graphs = {"": {}} | ({", cuda graph": {"cuda_graph": True}} if device == "cuda" else {})
    for graph, settings in graphs.items():
        if settings and "cuda_graph" not in inspect.signature(trained.generate).parameters:
            found |= {
                f"{texts}{graph}": {"error": "no cuda_graph in generate()"} for texts in ("one text", "eight texts")
            }
            continue
        for texts, count in (("one text", 1), ("eight texts", 8)):

            def write(length: int, count: int = count, settings: dict[str, Any] = settings) -> str:
                if count == 1:
                    return trained.generate("The", length, temperature=0, **settings)
                pieces = trained.stream("The", length, temperature=0, num_samples=count, **settings)
                different = {"The" + "".join(sample) for sample in zip(*pieces, strict=True)}
                return different.pop() if len(different) == 1 else "the eight texts differ"

            try:
                found[f"{texts}{graph}"] = timed(write, length, count)
            except Exception as error:
                found[f"{texts}{graph}"] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return found


def timed(write: Callable[[int], str], length: int, count: int) -> dict[str, Any]:
    """The speed is that of the characters between `length` and 3 `length`: what a call costs at its start, such as
    the capture of a CUDA graph, is not in it."""
    write(20)
    moments = [time.perf_counter()]
    written = []
    for characters in (length, 3 * length):
        written.append(write(characters))
        moments.append(time.perf_counter())
    short, long = (after - before for before, after in itertools.pairwise(moments))
    return {"text": written[0], "speed": 2 * count * length / max(long - short, 1e-9), "seconds": short + long}


def theirs(stage: Stage, device: str, length: int) -> dict[str, float]:
    """nanoGPT's generate, with gpt_small's sizes."""
    import torch

    model = nanogpt()
    sizes = dict(n_layer=2, n_head=2, n_embd=64, block_size=64) if stage.dry else {}
    sizes = sizes or dict(n_layer=6, n_head=6, n_embd=384, block_size=256)
    gpt = model.GPT(model.GPTConfig(vocab_size=65, dropout=0.0, bias=False, **sizes)).to(device).eval()
    start_BT = torch.zeros(1, 1, dtype=torch.long, device=device)

    def write(length: int) -> str:
        return str(gpt.generate(start_BT, length)[0, -1].item())

    return {"speed": timed(write, length, 1)["speed"]}
