"""Milliseconds per training step: nanoGPT compiled, a bare loop, and this project eager and compiled in each way.

All runs start at the same time and compile in parallel. When all are ready, each is timed alone on the GPU.
"""

import json
import statistics
from pathlib import Path

from cases import Case, Failure
from kit import Stage
from measuring import milliseconds, nanogpt, take_turn
from runs import Run, run_all

SECONDS = 100
WAYS = ("reduce-overhead", "cudagraphs", "inductor", "blocks")  # values of trainer.compile
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
# As `ours, eager`, with another optimizer.
SOAPS = {"soap": ["optimizer=soap"], "soap batched": ["optimizer=soap", "optimizer.batched=true"]}
CASES += [Case(f"modern, ours, {how}", STEP, "ms") for how in SOAPS]
TINY = ["model.n_layer=1", "model.n_head=1", "model.n_embd=16", "model.block_size=16", "data.batch_size=2"]


def run(stage: Stage) -> None:
    names = [name for name in dict.fromkeys(case.name for case in CASES) if stage.pending(name)]
    folder = stage.work / "turns"
    folder.mkdir()
    try:
        nanogpt()
    except Failure as absent:
        stage.skip(str(absent), *(name for name in names if "nanogpt" in name))
        names = [name for name in names if stage.pending(name)]
    runs = [make_run(stage, name, number, len(names)) for number, name in enumerate(names)]

    def done(run: Run) -> None:
        number = names.index(run.name)
        (folder / f"{number}.ready").touch()  # the other runs stop waiting for it
        with stage.attempt(run.name):
            report(stage, run.check(), folder / f"{number}.json")

    run_all(runs, slots=len(runs), done=done)


def make_run(stage: Stage, name: str, number: int, count: int) -> Run:
    """The run of a case, not yet started; `number` is its name in `take_turn`."""
    model, loop, mode = name.split(", ")
    folder, steps = stage.work / "turns", 20 if stage.dry else STEPS // 2 if mode in SOAPS else STEPS
    if loop == "nanogpt":

        def work() -> dict[str, float]:
            return time_nanogpt(stage, model, folder, str(number), count, steps)

        return stage.run(name, threads=1, timeout=240, work=work)
    trainer = dict(max_steps=steps, val_check_interval=steps, log_every_n_steps=5 if stage.dry else EVERY)
    trainer |= dict(compile=mode if mode in WAYS else "false", gradient_clip_val="null")
    probe = dict(_target_=f"probes.{'Turn' if loop == 'ours' else 'BareLoop'}", folder=folder, name=number, count=count)
    probe |= {} if loop == "ours" else dict(steps=steps)
    overrides = [
        *MODELS[model],
        *SOAPS.get(mode, []),
        *stage.corpus(),
        *(TINY if stage.dry else []),
        *stage.overrides(),
    ]
    overrides += [f"trainer.{key}={value}" for key, value in trainer.items()]
    overrides += [f"+callbacks.turn.{key}={value}" for key, value in probe.items()]
    return stage.run(name, *overrides, threads=1, timeout=240)  # most of the work is on the GPU


def report(stage: Stage, run: Run, file: Path) -> None:
    _, loop, mode = run.name.split(", ")
    if loop == "bare loop":
        stage.row(run.name, STEP, json.loads(file.read_text())["ms"], seconds=run.seconds)
        return
    if loop == "nanogpt":
        stage.row(run.name, STEP, run.result()["ms"], seconds=run.seconds)
        return
    metrics, speeds = run.json("metrics"), run.history("tokens_per_second")
    measured = [speed for step, speed in speeds.items() if step > max(speeds) // 3]  # the first third is warm-up
    tokens_per_step = metrics["tokens_per_second"] * metrics["train_seconds"] / metrics["steps"]
    stage.row(run.name, STEP, 1000 * tokens_per_step / statistics.median(measured), seconds=run.seconds)
    if mode in WAYS:
        stage.row(run.name, COMPILATION, metrics["compilation_seconds"], seconds=0.0)
    if stage.pending(run.name):
        mfu = scalars(run, "train/mfu")
        if mfu:
            stage.row(run.name, MFU, statistics.median(mfu[len(mfu) // 3 :]), seconds=0.0)
        else:
            stage.skip("the peak FLOP/s of the device are unknown", run.name)


def scalars(run: Run, tag: str) -> list[float]:
    """The values of a scalar in the run's TensorBoard files; empty if there is none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415 - slow import

    events = EventAccumulator(str(run.directory)).Reload()
    return [event.value for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


def time_nanogpt(stage: Stage, model: str, folder: Path, name: str, count: int, steps: int) -> dict[str, float]:
    """Times nanoGPT's model, optimizer and batches, with the sizes of our models."""
    import torch  # noqa: PLC0415 - run.py imports the stages without torch

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
