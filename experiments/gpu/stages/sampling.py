"""Characters per second of this project and nanoGPT on GPU and CPU, and whether the texts are equal."""

import inspect
import itertools
import time
from collections.abc import Callable
from typing import Any

from cases import Case, Failure
from kit import Stage
from measuring import nanogpt
from runs import Run, run_in_child

SECONDS = 20
SPEED, SAME = "speed", "text at temperature 0"
DEVICES = {"cpu": False, "gpu": True}  # name -> whether it requires CUDA
CASES = [
    Case("sample.py", SAME, expected="same"),  # compared with the Python API
    Case("sample.py on the gpu", SAME, expected="same", cuda=True),  # compared with the CPU
    Case("cpu, eight texts", SAME, expected="same"),  # each compared with the single text
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
    """Overfits a model to its text, so that the most likely character is the same on every device."""
    steps = 150 if stage.dry else 300
    overrides = ["model=gpt_small", *(TINY if stage.dry else []), "model.dropout=0", "optimizer.lr=1e-3"]
    overrides += ["data.batch_size=16", f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
    stage.trained = stage.run("trained", *overrides, *stage.overrides(*stage.random_text()), "trainer.compile=false")
    stage.trained.start().wait()


def run(stage: Stage) -> None:
    names = [case.name for case in stage.cases]
    with stage.attempt(*names):
        run = stage.trained.check()
        length = 100 if stage.dry else 250
        outcome = run_in_child(stage, "cpu texts", lambda: texts(run, "cpu", length))
        report(stage, "cpu", outcome, outcome["one text"]["text"])
        cpu_text = sampled(stage, run, "cpu", length)
        same = "same" if cpu_text == outcome["one text"]["text"] else f"another: {cpu_text[:60]!r}"
        stage.row("sample.py", SAME, same)
        if not stage.dry:
            report(stage, "gpu", run_in_child(stage, "gpu texts", lambda: texts(run, "cuda", length)), cpu_text)
            gpu_text = sampled(stage, run, "cuda", length)
            stage.row("sample.py on the gpu", SAME, "same" if gpu_text == cpu_text else f"another: {gpu_text[:60]!r}")
        for device, name in (("cpu", "cpu"), ("cuda", "gpu")):
            with stage.attempt(case := f"nanogpt, {name}, one text"):
                if not stage.pending(case):
                    continue
                try:
                    nanogpt()
                except Failure as absent:
                    stage.skip(str(absent), case)
                    continue
                stage.row(case, SPEED, run_in_child(stage, case, lambda: nanogpt_speed(stage, device, length))["speed"])  # noqa: B023


def report(stage: Stage, device: str, outcome: dict[str, Any], expected: str) -> None:
    """Sends the rows of the speeds and of the texts."""
    for name, result in outcome.items():
        case = f"{device}, {name}"
        if "error" in result:
            send = stage.skip if result["error"].startswith("no ") else stage.fail
            send(result["error"], case)
            continue
        stage.row(case, SPEED, result["speed"], seconds=result["seconds"])
        if stage.declared(case, SAME):
            stage.row(case, SAME, "same" if result["text"] == expected else f"another: {result['text'][:60]!r}")


def sampled(stage: Stage, run: Run, device: str, length: int) -> str:
    """The output of sample.py, without the final line break."""
    overrides = [f"run={run.directory}", f"device={device}", "temperature=0", f"max_new_tokens={length}", "prompt=The"]
    run = stage.run(f"sample {device}", *overrides, command="sample").start().wait().check()
    return run.out.read_text()[:-1]


def texts(run: Run, device: str, length: int) -> dict[str, Any]:
    """Generates one and eight texts with the Python API; on a GPU also with a CUDA graph per token."""
    import chargpt  # noqa: PLC0415 - run.py imports the stages without torch

    trained = chargpt.load(run.directory, device)
    results: dict[str, Any] = {}
    graphs = {"": {}} | ({", cuda graph": {"cuda_graph": True}} if device == "cuda" else {})
    for graph, settings in graphs.items():
        if settings and "cuda_graph" not in inspect.signature(trained.generate).parameters:
            results |= {
                f"{label}{graph}": {"error": "no cuda_graph in generate()"} for label in ("one text", "eight texts")
            }
            continue
        for label, count in (("one text", 1), ("eight texts", 8)):

            def write(length: int, count: int = count, settings: dict[str, Any] = settings) -> str:
                if count == 1:
                    return trained.generate("The", length, temperature=0, **settings)
                pieces = trained.stream("The", length, temperature=0, num_samples=count, **settings)
                distinct = {"The" + "".join(sample) for sample in zip(*pieces, strict=True)}
                return distinct.pop() if len(distinct) == 1 else "the eight texts differ"

            try:
                results[f"{label}{graph}"] = timed(write, length, count)
            except Exception as error:
                results[f"{label}{graph}"] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return results


def timed(write: Callable[[int], str], length: int, count: int) -> dict[str, Any]:
    """Measures the speed between `length` and 3 `length` characters, without the fixed cost of a call, such as the
    capture of a CUDA graph."""
    write(20)
    times = [time.perf_counter()]
    texts = []
    for characters in (length, 3 * length):
        texts.append(write(characters))
        times.append(time.perf_counter())
    short, long = (end - start for start, end in itertools.pairwise(times))
    return {"text": texts[0], "speed": 2 * count * length / max(long - short, 1e-9), "seconds": short + long}


def nanogpt_speed(stage: Stage, device: str, length: int) -> dict[str, float]:
    """The speed of nanoGPT's `generate`, with the sizes of gpt_small."""
    import torch  # noqa: PLC0415 - run.py imports the stages without torch

    model = nanogpt()
    sizes = dict(n_layer=2, n_head=2, n_embd=64, block_size=64) if stage.dry else {}
    sizes = sizes or dict(n_layer=6, n_head=6, n_embd=384, block_size=256)
    gpt = model.GPT(model.GPTConfig(vocab_size=65, dropout=0.0, bias=False, **sizes)).to(device).eval()
    start_BT = torch.zeros(1, 1, dtype=torch.long, device=device)

    def write(length: int) -> str:
        return str(gpt.generate(start_BT, length)[0, -1].item())

    return {"speed": timed(write, length, 1)["speed"]}
