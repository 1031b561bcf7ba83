"""What a person reads at the beginning and at the end of a run, and in TensorBoard's HParams tab."""

import logging
import os
import shlex
import shutil
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from chargpt.distributed import env
from chargpt.training.lightning_module import LanguageModeling
from chargpt.training.setup import Run
from chargpt.training.trainer import device_name
from chargpt.utils.duration import parse_duration

log = logging.getLogger(__name__)


def log_header(run: Run) -> None:
    """Five lines: the model, the text, the steps, the device, the place."""
    model, data, trainer = run.model, run.data, run.trainer
    names = {"members": "members", "n_layer": "layers", "n_head": "heads", "n_embd": "channels"}
    settings = run.config["model"]
    numbers = {name: settings[key] for key, name in names.items() if key in settings}
    parts = [f"{number} {name if number != 1 else name.removesuffix('s')}" for name, number in numbers.items()]
    shape = ", ".join([*parts, f"block {model.block_size}"])
    accumulated = trainer.accumulate_grad_batches
    passes = f"{accumulated} x " if accumulated > 1 else ""
    rows = {
        "model": f"{run.config['name']}: {format_count(run.module.parameter_count)} parameters, {shape}",
        "text": f"{data.corpus.name}: {data.characters:,} characters, {data.tokenizer.vocab_size} distinct",
        "train": f"{_end(run)}, {passes}{data.batch_size} x {data.block_size} tokens a step{_epochs(run)}",
        "on": f"{trainer.world_size} x {device_name(trainer.strategy.root_device)}, {trainer.precision}",
        "in": str(run.directory.path),
    }
    for name, text in rows.items():
        log.info("%7s  %s", name, text)


def print_results(run: Run, metrics: dict[str, Any], text: str) -> None:
    """A sample, the figures, and the three next commands; in a sweep the figures alone."""
    console = _Console(highlight=False)
    in_sweep = env.SWEEP_ENV in os.environ  # its table says the rest
    if not in_sweep:
        console.rule("a sample of the best checkpoint", style="dim")
        console.print(text, markup=False, soft_wrap=True)
        console.rule(style="dim")
    path = run.directory.path
    run_word, resume_word = shlex.quote(f"run={path}"), shlex.quote(f"resume={path}")
    # What can be pasted into this very shell: python itself where its folder is on the PATH, else by its place.
    python = "python" if shutil.which("python") == sys.executable else os.path.relpath(sys.executable)
    board = "tensorboard" if python == "python" else f"{python} -m tensorboard.main"
    further = f"trainer.max_steps={2 * metrics['steps']}"
    if run.timer.time_used() >= 1:
        further = f"trainer.max_time={2 * round(parse_duration(run.config['trainer']['max_time']))}"
    # A prompt that this run's vocabulary can say: the beginning of its own sample.
    begin = next((word for word in text.split() if word.isalpha()), "")
    prompt = f" prompt={begin}" if begin else ""
    logs = path.parent if path.is_absolute() else path.parts[0]
    mfu = f", {run.metrics_callback.mfu:.0%} of the device's peak" if run.metrics_callback.mfu else ""
    rows = {
        "loss": f"[bold]{metrics['val_loss']:.4f}[/] nats on the validation text (step {metrics['best_step']}), "
        f"{metrics['final_val_loss']:.4f} at the last step; {metrics['val_bpc']:.3f} bits a character",
        "time": f"{metrics['steps']:,} steps in {metrics['train_seconds']:.0f} s of training, "
        f"{metrics['tokens_per_second']:,.0f} tokens/s{mfu}",
        "run": escape(f"{path}"),
        "sample": escape(f"{python} sample.py {run_word}{prompt}"),
        "look": escape(f"{board} --logdir {shlex.quote(str(logs))}"),
        "go on": escape(f"{python} train.py {resume_word} {further}"),
    }
    for name, line in rows.items():
        if name in ("loss", "time") or not in_sweep:
            console.print(f"[dim]{name:>7}[/]  {line}", soft_wrap=True)
    sys.stdout.flush()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """`train.py | head` has read enough, but the run is finished: rich would exit with 1."""
        raise BrokenPipeError


def hyperparameters(config: dict[str, Any], module: LanguageModeling) -> dict[str, bool | str | float | int]:
    """What the HParams tab compares runs by: the numbers of the model, and what varies in training."""
    scalars = {k: v for k, v in config["model"].items() if isinstance(v, bool | int | float | str) and k[0] != "_"}
    return {
        **scalars,
        "model": config["model"]["_target_"].rsplit(".", 1)[-1],
        "parameters": module.parameter_count,
        "optimizer": config["optimizer"]["_target_"].rsplit(".", 1)[-1],
        "lr": config["optimizer"]["lr"],
        "schedule": config["schedule"]["_target_"].rsplit(".", 1)[-1],
        "batch_size": config["data"]["batch_size"],
        "max_steps": config["trainer"]["max_steps"],
        "seed": config["seed"],
    }


def format_count(count: int) -> str:
    """1234 -> 1,234; 12345678 -> 12.35M."""
    return f"{count:,}" if count < 100_000 else f"{count / 1e6:.2f}M"


def _epochs(run: Run) -> str:
    steps, passes = run.trainer.max_steps, run.trainer.accumulate_grad_batches
    epochs = steps * passes / run.data.batches_per_epoch
    return f", {epochs:{'.2g' if epochs < 10 else ',.0f'}} epochs" if steps > 0 else ""


def _end(run: Run) -> str:
    steps, budget = run.trainer.max_steps, run.config["trainer"]["max_time"]
    parts = [f"{steps:,} steps"] if steps > 0 else []
    if budget:
        parts.append(f"{parse_duration(budget):g} s of training")
    return " or ".join(parts)
