"""The header and the results that a run prints, and the hyperparameters for TensorBoard's HParams tab."""

import logging
import os
import shlex
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from chargpt.distributed import env
from chargpt.invocation import command_line, python
from chargpt.training.lightning_module import LanguageModeling
from chargpt.training.setup import Run
from chargpt.training.trainer import device_name
from chargpt.utils.duration import parse_duration

log = logging.getLogger(__name__)


def log_header(run: Run) -> None:
    """Logs five lines: the model, the data, the training length, the device, the run directory."""
    model, data, trainer = run.model, run.data, run.trainer
    assert data.tokenizer is not None  # the text has been read
    names = {"members": "members", "n_layer": "layers", "n_head": "heads", "n_embd": "channels"}
    settings = run.config["model"]
    numbers = {name: settings[key] for key, name in names.items() if key in settings}
    parts = [f"{number} {name if number != 1 else name.removesuffix('s')}" for name, number in numbers.items()]
    shape = ", ".join([*parts, f"block {model.block_size}"])
    accumulated = trainer.accumulate_grad_batches
    passes = f"{accumulated} x " if accumulated > 1 else ""
    rows = {
        "model": f"{run.config['name']}: {format_count(run.module.parameter_count)} parameters, {shape}",
        "data": f"{data.corpus.name}: {data.characters:,} characters, vocabulary of {data.tokenizer.vocab_size}",
        "train": f"{_end(run)}, {passes}{data.batch_size} x {data.block_size} tokens per step{_epochs(run)}",
        "device": f"{trainer.world_size} x {device_name(trainer.strategy.root_device)}, {trainer.precision}",
        "run": str(run.directory.path),
    }
    for name, line in rows.items():
        log.info("%7s  %s", name, line)


def print_results(run: Run, metrics: dict[str, Any], sample: str) -> None:
    """Prints a sample, the metrics and three commands to continue with; in a sweep only the metrics."""
    console = _Console(highlight=False)
    in_sweep = env.SWEEP_ENV in os.environ  # the table of the sweep contains the rest
    if not in_sweep:
        console.rule("a sample of the best checkpoint", style="dim")
        console.print(sample, markup=False, soft_wrap=True)
        console.rule(style="dim")
    path = run.directory.path
    tensorboard = ["tensorboard"] if python() == ["python"] else [*python(), "-m", "tensorboard.main"]
    longer = f"trainer.max_steps={2 * metrics['steps']}"
    budget = parse_duration(run.config["trainer"]["max_time"])
    if budget is not None and run.timer.time_fraction() >= 1:
        longer = f"trainer.max_time={2 * round(budget)}"
    # The first word of the sample is a prompt that the vocabulary of this run contains.
    first_word = next((word for word in sample.split() if word.isalpha()), "")
    prompt = [f"prompt={first_word}"] if first_word else []
    logdir = path.parent if path.is_absolute() else path.parts[0]
    mfu = f", {run.metrics_callback.mfu:.0%} of the device's peak" if run.metrics_callback.mfu else ""
    rows = {
        "loss": f"[bold]{metrics['val_loss']:.4f}[/] nats per token on the validation split "
        f"(step {metrics['best_step']}), {metrics['final_val_loss']:.4f} at the last step; "
        f"{metrics['val_bpc']:.3f} bits per character",
        "time": f"{metrics['steps']:,} steps in {metrics['train_seconds']:.0f} s of training, "
        f"{metrics['tokens_per_second']:,.0f} tokens/s{mfu}",
        "run": escape(f"{path}"),
        "sample": escape(command_line("sample", f"run={path}", *prompt)),
        "metrics": escape(shlex.join([*tensorboard, "--logdir", str(logdir)])),
        "resume": escape(command_line("train", f"resume={path}", longer)),
    }
    for name, line in rows.items():
        if name in ("loss", "time") or not in_sweep:
            console.print(f"[dim]{name:>7}[/]  {line}", soft_wrap=True)
    sys.stdout.flush()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raises `BrokenPipeError`. Rich would exit with 1 after `train.py | head`, although the run is finished."""
        raise BrokenPipeError


def hyperparameters(config: dict[str, Any], module: LanguageModeling) -> dict[str, bool | str | float | int]:
    """The hyperparameters by which the HParams tab compares runs: the model's scalars and the training settings."""
    scalars = {k: v for k, v in config["model"].items() if isinstance(v, bool | int | float | str) and k[0] != "_"}
    return {
        **scalars,
        "model": config["model"]["_target_"].rsplit(".", 1)[-1],
        "parameters": module.parameter_count,
        "optimizer": config["optimizer"]["_target_"].rsplit(".", 1)[-1],
        **{key: value for key, value in config["optimizer"].items() if key == "lr"},
        "schedule": config["schedule"]["_target_"].rsplit(".", 1)[-1],
        "batch_size": config["data"]["batch_size"],
        "max_steps": config["trainer"]["max_steps"],
        "seed": config["seed"],
    }


def format_count(count: int) -> str:
    """Formats a count: 1234 -> 1,234; 12345678 -> 12.35M."""
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
