"""Milliseconds of a training step: nanoGPT's model compiled, a bare loop, and ours eager and compiled each way.

All runs start at once and compile side by side. When all are ready, each is timed with the GPU to itself.
"""

import json
import statistics
from pathlib import Path

from cases import Case, Failure
from kit import Stage
from measuring import milliseconds, nanogpt, take_turn
from runs import Run, together

SECONDS = 100
WAYS = ("reduce-overhead", "cudagraphs", "inductor", "blocks")  # of trainer.compile
STEPS, EVERY = 200, 20
MODELS = {"small": ["model=gpt_small", "data.batch_size=64"], "modern": ["model=gpt_modern"]}
SHAPES = {
    "small": dict(n_layer=6, n_head=6, n_embd=384, block_size=256, dropout=0.2),
    "modern": dict(n_layer=4, n_head=2, n_embd=128, block_size=128, dropout=0.0),
}
BATCH = {"small": 64, "modern": 12}
STEP, MFU, COMPILATION = "a step", "model FLOPs utilization", "compilation"
CASES = []
for model in MODELS:
    CASES += [Case(f"{model}, ours, eager", STEP, "ms"), Case(f"{model}, ours, eager", MFU, cuda=True)]
    CASES += [Case(f"{model}, bare loop, eager", STEP, "ms")]
    for way in WAYS:
        CASES += [
            Case(f"{model}, ours, {way}", STEP, "ms", cuda=True),
            Case(f"{model}, ours, {way}", MFU, cuda=True),
        ]
        CASES += [Case(f"{model}, ours, {way}", COMPILATION, "s", cuda=True)]
    CASES += [Case(f"{model}, nanogpt, compiled", STEP, "ms", cuda=True)]
# Eager, as `ours, eager`, with another optimizer.
SOAPS = {"soap": ["optimizer=soap"], "soap batched": ["optimizer=soap", "optimizer.batched=true"]}
CASES += [Case(f"modern, ours, {how}", STEP, "ms") for how in SOAPS]
TINY = ["model.n_layer=1", "model.n_head=1", "model.n_embd=16", "model.block_size=16", "data.batch_size=2"]


def run(stage: Stage) -> None:
    names = [name for name in dict.fromkeys(case.name for case in CASES) if stage.wanted(name)]
    folder = stage.work / "turns"
    folder.mkdir()
    try:
        nanogpt()
    except Failure as absent:
        stage.skip(str(absent), *(name for name in names if "nanogpt" in name))
        names = [name for name in names if stage.wanted(name)]
    runs = [one(stage, name, number, len(names)) for number, name in enumerate(names)]

    def done(run: Run) -> None:
        number = names.index(run.name)
        (folder / f"{number}.ready").touch()  # the others no longer wait for it
        with stage.attempt(run.name):
            report(stage, run.check(), folder / f"{number}.json")

    together(runs, slots=len(runs), done=done)


def one(stage: Stage, name: str, number: int, count: int) -> Run:
    """The run of a case, not yet started; `number` is its name among those that take turns."""
    model, who, how = name.split(", ")
    folder, steps = stage.work / "turns", 20 if stage.dry else STEPS // 2 if how in SOAPS else STEPS
    if who == "nanogpt":

        def work() -> dict[str, float]:
            return theirs(stage, model, folder, str(number), count, steps)

        return stage.run(name, threads=1, timeout=240, work=work)
    trainer = dict(max_steps=steps, val_check_interval=steps, log_every_n_steps=5 if stage.dry else EVERY)
    trainer |= dict(compile=how if how in WAYS else "false", gradient_clip_val="null")
    probe = dict(_target_=f"probes.{'Turn' if who == 'ours' else 'BareLoop'}", folder=folder, name=number, count=count)
    probe |= {} if who == "ours" else dict(steps=steps)
    words = [*MODELS[model], *SOAPS.get(how, []), *stage.corpus(), *(TINY if stage.dry else []), *stage.words()]
    words += [f"trainer.{key}={value}" for key, value in trainer.items()]
    words += [f"+callbacks.turn.{key}={value}" for key, value in probe.items()]
    return stage.run(name, *words, threads=1, timeout=240)  # the work is the GPU's


def report(stage: Stage, run: Run, file: Path) -> None:
    _, who, how = run.name.split(", ")
    if who == "bare loop":
        stage.row(run.name, STEP, json.loads(file.read_text())["ms"], seconds=run.seconds)
        return
    if who == "nanogpt":
        stage.row(run.name, STEP, run.result()["ms"], seconds=run.seconds)
        return
    metrics, speeds = run.json("metrics"), run.history("tokens_per_second")
    later = [speed for step, speed in speeds.items() if step > max(speeds) // 3]  # the first third warms up
    tokens_a_step = metrics["tokens_per_second"] * metrics["train_seconds"] / metrics["steps"]
    stage.row(run.name, STEP, 1000 * tokens_a_step / statistics.median(later), seconds=run.seconds)
    if how in WAYS:
        stage.row(run.name, COMPILATION, metrics["compilation_seconds"], seconds=0.0)
    if stage.wanted(run.name):
        mfu = scalars(run, "mfu")
        if mfu:
            stage.row(run.name, MFU, statistics.median(mfu[len(mfu) // 3 :]), seconds=0.0)
        else:
            stage.skip("the device's peak is not known", run.name)


def scalars(run: Run, tag: str) -> list[float]:
    """A curve from the run's TensorBoard files; empty where there is none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.directory / "tensorboard")).Reload()
    return [event.value for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


def theirs(stage: Stage, model: str, folder: Path, name: str, count: int, steps: int) -> dict[str, float]:
    """nanoGPT's model and optimizer, with batches as it makes them and the sizes of ours."""
    import torch

    module, shape, device = nanogpt(), SHAPES[model], stage.device
    tokens_N = torch.randint(65, (1_000_000,), generator=torch.Generator().manual_seed(0))
    gpt = module.GPT(module.GPTConfig(vocab_size=65, bias=False, **shape)).to(device)
    optimizer = gpt.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device)
    compiled, T = torch.compile(gpt), shape["block_size"]

    def step() -> None:
        starts = torch.randint(len(tokens_N) - T, (BATCH[model],))
        x, y = (torch.stack([tokens_N[i + k : i + k + T] for i in starts]) for k in (0, 1))
        x, y = (tokens.pin_memory().to(device, non_blocking=True) for tokens in (x, y))
        with torch.autocast(device, torch.bfloat16):
            _, loss = compiled(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    turn = take_turn(folder, name, count)
    ms = milliseconds(step, steps, device)
    turn.close()
    return {"ms": ms}
