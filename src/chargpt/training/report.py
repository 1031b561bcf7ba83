"""The header and the results that a run prints, and the hyperparameters for loggers."""

import logging
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PyTorchProfiler, SimpleProfiler
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chargpt.data.text_files import TextFiles
from chargpt.distributed import env
from chargpt.invocation import command_line, tensorboard_command
from chargpt.runs import retention
from chargpt.runs.observers import selected_option
from chargpt.training import epochs
from chargpt.training.callbacks.metrics import SCORE
from chargpt.training.lightning_module import LanguageModeling
from chargpt.training.setup import Run
from chargpt.training.trainer import PROFILE, SCALED_UP, SCALED_UP_ADVICE, device_name
from chargpt.utils.duration import parse_duration

log = logging.getLogger(__name__)

OVERFITTING = 1.02  # times the lowest validation loss
PROFILE_ACTIONS = 20  # printed by trainer.profiler=simple
PROFILE_LINES = 40  # printed of the report of trainer.profiler=pytorch, which is sorted


def log_header(run: Run) -> None:
    """Logs the files of the text, the model, the data, the training length, the device and the run directory."""
    model, data, trainer = run.model, run.data, run.trainer
    assert data.tokenizer is not None  # the text has been read
    names = {"members": "members", "n_layer": "layers", "n_head": "heads", "n_embd": "channels"}
    settings = run.config["model"]
    numbers = {name: settings[key] for key, name in names.items() if key in settings}
    parts = [f"{number} {name if number != 1 else name.removesuffix('s')}" for name, number in numbers.items()]
    shape = ", ".join([*parts, f"block {model.block_size}"])
    accumulated = trainer.accumulate_grad_batches
    passes = f"{accumulated} x " if accumulated > 1 else ""
    files = data.corpus.describe() if isinstance(data.corpus, TextFiles) else ""
    choices = run.directory.read_choices()
    rows = {
        **({"files": files} if files else {}),
        "model": f"{_model_name(run.config, choices)}: {format_count(run.module.parameter_count)} parameters, {shape}",
        "data": f"{data.corpus.name}: {data.characters:,} characters, vocabulary of {data.tokenizer.vocab_size}",
        "train": f"{_end(run)}, {passes}{data.batch_size} x {data.block_size} tokens per step{_epochs(run)}",
        **({"resume": _origin(run)} if run.origin.resumed else {}),
        "device": f"{trainer.world_size} x {device_name(trainer.strategy.root_device)}, {trainer.precision}",
        "run": str(run.directory.path),
    }
    if data.limits_validation and trainer.limit_val_batches:
        part, whole = data.validation_part, len(data.val_tokens_N) - 1
        sizes = f"on {format_count(part)} of {format_count(whole)} tokens"
        rows["val"] = f"{sizes} (data.max_validation_tokens), at the end all"
    for name, line in rows.items():
        log.info("%6s  %s", name, line)
    if choices.get("lecture") == SCALED_UP and trainer.strategy.root_device.type == "cpu":
        log.warning("%s", SCALED_UP_ADVICE)


def print_results(run: Run, metrics: dict[str, Any], sample: str) -> None:
    """Prints a sample, the metrics and three commands to continue with; in a sweep only the metrics."""
    if isinstance(sys.stdout, TextIOWrapper):  # not in a notebook
        sys.stdout.reconfigure(encoding="utf-8")  # independent of the locale, as sample.py
    console = _Console(highlight=False)
    in_sweep = env.SWEEP_ENV in os.environ  # the table of the sweep contains the rest
    if not in_sweep:
        console.rule("a sample of the best checkpoint", style="dim")
        print(sample)  # as it is: rich would replace :smile:
        console.rule(style="dim")
    path = run.directory.path
    longer = f"trainer.max_steps={2 * metrics['steps']}"
    settings = run.config["trainer"]
    end = epochs.length(settings, run.data.batches_per_epoch)
    if end.startswith("trainer.max_epochs="):
        longer = f"trainer.max_epochs={2 * settings['max_epochs']}"
    if end.startswith("trainer.fast_dev_run="):
        longer = "trainer.fast_dev_run=false"
    budget = parse_duration(settings["max_time"])
    if budget is not None and run.timer.time_fraction() >= 1:
        longer = f"trainer.max_time={2 * round(budget)}"
    stopped = next((stop for stop in run.trainer.early_stopping_callbacks if stop.stopping_reason_message), None)
    resume = [longer] if stopped is None or metrics["steps"] == run.trainer.max_steps else []
    if stopped is not None:
        resume += _more_patience(stopped, run)
    first_word = _first_word(run)
    prompt = [f"prompt={first_word}"] if first_word else []
    has_tensorboard = any(isinstance(logger, TensorBoardLogger) for logger in run.trainer.loggers)
    logdir = path.parent if path.is_absolute() else path.parts[0]
    curves = tensorboard_command(Path(logdir)) if has_tensorboard else str(run.directory.history)
    mfu = f", {run.metrics_callback.mfu:.0%} of peak" if run.metrics_callback.mfu else ""
    stop = {"stop": escape(_why_stopped(stopped, metrics["monitor"]))} if stopped is not None else {}
    rows = {
        **loss_rows(metrics, run.metrics_callback.recent_train_loss),
        "time": f"{metrics['steps']:,} steps in {metrics['train_seconds']:.0f} s of training, "
        f"{metrics['tokens_per_second']:,.0f} tokens/s{mfu}",
        **stop,
        "run": escape(f"{path}"),
        "sample": escape(command_line("sample", f"run={path}", *prompt)),
        "curves": escape(curves),
        "resume": escape(command_line("train", *_from_what_is_kept(run, resume))),
    }
    for name, line in rows.items():
        if not in_sweep or name not in ("run", "sample", "curves", "resume"):
            console.print(f"[dim]{name:>6}[/]  {line}", soft_wrap=True)
    sys.stdout.flush()


def _from_what_is_kept(run: Run, longer: list[str]) -> list[str]:
    """The overrides that train a finished run longer, from its beginning if no checkpoint for that remains."""
    if run.keep == retention.WEIGHTS_ONLY:
        return [f"rerun={run.directory.path}", *longer, f"checkpoint={retention.ALL}"]
    return [f"resume={run.directory.best if run.keep == retention.BEST_ONLY else run.directory.path}", *longer]


def loss_rows(metrics: dict[str, Any], train_loss: float | None) -> dict[str, str]:
    """The rows of the best validation, and of the last one if that is another.

    Args:
        train_loss: at the last validation.
    """
    if metrics["val_loss"] is None:
        return {"loss": "no validation"}
    where = "in a partial validation" if metrics.get("partial_validation") else "on the validation split"
    loss, bits = f"[bold]{metrics['val_loss']:.4f}[/] nats per token", f"{metrics['val_bpc']:.3f} bits per character"
    rows = {"loss": f"{loss}, {bits} {where}"}
    if metrics["best_step"] != metrics["steps"] and metrics["final_val_loss"] is not None:
        last = metrics["final_val_loss"]
        rises = last > OVERFITTING * metrics["val_loss"]
        overfitted = rises and train_loss is not None and train_loss < metrics["val_loss"]
        hint = " (overfitting: fewer steps)" if overfitted else ""
        rows["best"] = f"step {metrics['best_step']:,} of {metrics['steps']:,}; at the last step {last:.4f}{hint}"
    return rows


def print_profile(run: Run) -> None:
    """Prints the longest actions that `trainer.profiler` has measured, and the path of the complete report."""
    profiler: Any = run.trainer.profiler  # pyright: ignore[reportAttributeAccessIssue] - not declared
    if isinstance(profiler, SimpleProfiler):
        _print_actions(profiler.recorded_durations)
    for path in sorted(run.directory.path.glob(f"*-{PROFILE}*.txt")):
        lines = path.read_text().splitlines()
        if isinstance(profiler, PyTorchProfiler):
            width = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
            print("\n".join(line.expandtabs()[:width] for line in lines[:PROFILE_LINES]), file=sys.stderr)
        log.info("profile  %s (%d lines)", path, len(lines))


def _print_actions(durations: Mapping[str, Sequence[float]]) -> None:
    """Prints a table of actions, longest first; an action includes the actions that it calls."""
    table = Table(box=None, pad_edge=False)
    for heading in ("total s", "calls", "mean ms"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=8)
    table.add_column("action", no_wrap=True, overflow="ellipsis")
    for action, seconds in sorted(durations.items(), key=lambda item: -sum(item[1]))[:PROFILE_ACTIONS]:
        total, calls = sum(seconds), len(seconds)
        table.add_row(f"{total:.3f}", f"{calls:,}", f"{1000 * total / calls:.2f}", escape(action))
    Console(stderr=True, highlight=False).print(table)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raises `BrokenPipeError`. Rich would exit with 1 after `train.py | head`, although the run is finished."""
        raise BrokenPipeError


def hyperparameters(
    config: dict[str, Any], module: LanguageModeling, choices: Mapping[str, str]
) -> dict[str, bool | str | float | int]:
    """The hyperparameters by which loggers compare runs: the model's scalars and the training settings.

    Args:
        choices: the selected option of each config group.
    """
    scalars = {k: v for k, v in config["model"].items() if isinstance(v, bool | int | float | str) and k[0] != "_"}
    return {
        **scalars,
        "model": _model_name(config, choices),
        "parameters": module.parameter_count,
        "optimizer": config["optimizer"]["_target_"].rsplit(".", 1)[-1],
        **({"lr": config["optimizer"]["lr"]} if "lr" in config["optimizer"] else {}),
        "schedule": config["schedule"]["_target_"].rsplit(".", 1)[-1],
        "batch_size": config["data"]["batch_size"],
        "max_steps": config["trainer"]["max_steps"],
        "seed": config["seed"],
    }


def _model_name(config: dict[str, Any], choices: Mapping[str, str]) -> str:
    """The selected option, or the name of the class; of a model of the lecture, `lecture=head`."""
    if "lecture" in choices:  # most of its models are variations of one option
        return f"lecture={choices['lecture']}"
    return choices.get("model") or config["model"]["_target_"].rsplit(".", 1)[-1]


def _why_stopped(stopped: EarlyStopping, monitor: str) -> str:
    if stopped.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
        name = monitor if stopped.monitor == SCORE else stopped.monitor
        return f"early: {name} did not improve in {stopped.patience} validations"
    return f"early: {(stopped.stopping_reason_message or '').removesuffix(' Signaling Trainer to stop.')}"


def _more_patience(stopped: EarlyStopping, run: Run) -> list[str]:
    """The overrides without which a run that has stopped early would not train on."""
    if "early_stopping" not in (run.config["callbacks"] or {}):  # added by its `_target_`, which resuming leaves out
        return []
    setting = "stopping_threshold=null"
    if stopped.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
        setting = f"patience={2 * stopped.patience}"
    return [selected_option(run.directory, "callbacks"), f"callbacks.early_stopping.{setting}"]


def format_count(count: int) -> str:
    """Formats a count: 1234 -> 1,234; 12345678 -> 12.35M."""
    return f"{count:,}" if count < 100_000 else f"{count / 1e6:.2f}M"


def _epochs(run: Run) -> str:
    steps, passes = run.trainer.max_steps, run.trainer.accumulate_grad_batches
    count = steps * passes / run.data.batches_per_epoch
    return f", {count:{'.2g' if count < 10 else ',.0f'}} epochs" if steps > 0 else ""


def _origin(run: Run) -> str:
    path = run.origin.checkpoint_path
    return f"from step {run.origin.step:,} ({path.name})" if path else "from the start: there is no checkpoint"


def _first_word(run: Run) -> str:
    """The first word of the text, a prompt that the vocabulary contains; "" if there is none."""
    assert run.data.tokenizer is not None  # the text has been read
    beginning = run.data.tokenizer.decode(run.data.train_tokens_N[:500])
    return next((word for word in re.findall(r"\w+", beginning) if word.isalpha()), "")


def _end(run: Run) -> str:
    steps, budget = run.trainer.max_steps, run.config["trainer"]["max_time"]
    parts = [f"{steps:,} steps"] if steps > 0 else []
    if budget:
        parts.append(f"{parse_duration(budget):g} s of training")
    return " or ".join(parts)
