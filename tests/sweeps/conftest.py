"""Writes run directories with all their files, without training."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.sweeps.processes import STARTED

CONFIG = {
    "name": "gpt_nano",
    "seed": 1337,
    "model": {
        "_target_": "chargpt.model.transformer.Transformer",
        "block_size": 16,
        "n_layer": 2,
        "n_head": 2,
        "dropout": 0.0,
        "norm": {"_target_": "torch.nn.LayerNorm", "_partial_": True, "bias": True},
    },
    "data": {"block_size": 16, "batch_size": 4, "seed": 1337, "cache_dir": None},
    "optimizer": {"_target_": "chargpt.optim.adamw.adamw", "lr": 1e-3, "betas": [0.9, 0.95]},
    "schedule": {"_target_": "chargpt.optim.lr_schedule.Constant", "warmup_steps": 0},
    "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 20, "accumulate_grad_batches": 1},
    "logger": {"history": {"directory": "somewhere"}},
    "callbacks": {"samples": {"seed": 1337}},
}
CHOICES = {
    "model": "gpt_nano",
    "model/norm": "layer_norm",
    "recipe": "gpt_nano",
    "trainer": "cpu",
    "data": "tinyshakespeare",
}


@pytest.fixture(autouse=True)
def kill_sweeps():
    """Kills the sweeps of a failed test, so that they do not slow down other tests."""
    yield
    while STARTED:
        STARTED.pop().kill()


def write_run(
    folder: Path,
    *overrides: str,
    loss: float | None = None,
    state: str = "finished",
    reason: str = "",
    choices: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
    history: list[tuple[int, float | None]] | None = None,
    column: str = "val_loss",
    **metrics: Any,
) -> Path:
    """Writes the run directory of a run with these overrides.

    Args:
        overrides: `model.n_layer=4` changes the config; the override of a group is only recorded.
        loss: the validation loss of a finished run.
        choices: selected options of groups, in addition to `CHOICES`.
        settings: changes of the config without an override, such as those that follow from an option.
        history: steps and validation losses, or values of another `column`.
        metrics: additional metrics.
    """
    config = OmegaConf.create(CONFIG)
    for override in overrides:
        key, _, value = override.partition("=")
        if OmegaConf.select(config, key) is not None and not OmegaConf.is_dict(OmegaConf.select(config, key)):
            OmegaConf.update(config, key, OmegaConf.create([json.loads(value)])[0])
    for key, value in (settings or {}).items():
        OmegaConf.update(config, key, value)
    config.data.block_size, config.data.seed = config.model.get("block_size", 16), config.seed
    config.callbacks.samples.seed, config.logger.history.directory = config.seed, str(folder)
    choices = CHOICES | (choices or {})
    hydra = {"hydra": {"overrides": {"task": list(overrides)}, "runtime": {"choices": choices}}}
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create(hydra), folder / ".hydra" / "hydra.yaml")
    status = {"state": state, "step": 20 if state == "finished" else 10, "time": 0.0, "reason": reason}
    (folder / "status.json").write_text(json.dumps(status))
    with (folder / "history.csv").open("w", newline="") as file:
        names = dict.fromkeys(["step", "train_loss", "val_loss", "lr", "grad_norm", "tokens_per_second", column])
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for step, value in history or []:
            others = {"train_loss": 3.0, "lr": 0.001, "grad_norm": 1.0, "tokens_per_second": 1000.0}
            writer.writerow({"step": step, **others, column: value})
    if state == "finished":
        defaults = {"val_loss": loss, "val_bpc": loss and loss / 0.6931, "steps": 20, "train_seconds": 12.0}
        defaults |= {"tokens_per_second": 1000.0, "parameters": 5000, "flops_per_token": 30_000}
        defaults |= {"seed": config.seed, "device": "cpu"}
        (folder / "metrics.json").write_text(json.dumps(defaults | metrics))
    return folder


ACCURACY = {"monitor": "accuracy", "mode": "max"}
WORD_PIECES = {"data.tokenizer": {"_target_": "chargpt.data.tokenizer.WordPieces", "size": 512}}


@pytest.fixture
def accurate(run: Callable[..., Path]) -> Callable[..., Path]:
    """`accurate("a", 0.5)` writes a run with the monitor accuracy; a failed run if the score is None."""

    def write(name: str, score: float | None, *overrides: str, **arguments: Any) -> Path:
        arguments = {"loss": 2.0, "settings": ACCURACY, "column": "accuracy"} | arguments
        if score is None:
            return run(name, *overrides, **{"state": "failed"} | arguments)
        return run(name, *overrides, **arguments | ACCURACY, score=score)

    return write


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """`run("a", "model.n_layer=4", loss=2.0)` writes the run directory outputs/a."""

    def write(name: str, *overrides: str, **arguments: Any) -> Path:
        return write_run(tmp_path / "outputs" / name, *overrides, **arguments)

    return write
