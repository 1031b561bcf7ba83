"""Run directories made by hand: the files of the contract, without the training."""

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
def nothing_is_left():
    """A sweep that a test has lost sight of does not slow down the others."""
    yield
    while STARTED:
        STARTED.pop().kill()


def write_run(
    folder: Path,
    *words: str,
    loss: float | None = None,
    state: str = "finished",
    reason: str = "",
    choices: dict[str, str] | None = None,
    came: dict[str, Any] | None = None,
    history: list[tuple[int, float | None]] | None = None,
    column: str = "val_loss",
    **figures: Any,
) -> Path:
    """A run directory as a run started with `words` would leave it.

    Args:
        words: `model.n_layer=4` changes the config; a word for a group is only written down as typed.
        loss: its validation loss; only a finished run has one.
        choices: of groups, beside the usual ones.
        came: settings that came with a choice, and were not typed.
        history: steps and validation losses, or the figures of another `column`.
        figures: further metrics.
    """
    config = OmegaConf.create(CONFIG)
    for word in words:
        key, _, value = word.partition("=")
        if OmegaConf.select(config, key) is not None and not isinstance(OmegaConf.select(config, key), dict):
            OmegaConf.update(config, key, OmegaConf.create([json.loads(value)])[0])
    for key, setting in (came or {}).items():
        OmegaConf.update(config, key, setting)
    config.data.block_size, config.data.seed = config.model.get("block_size", 16), config.seed
    config.callbacks.samples.seed, config.logger.history.directory = config.seed, str(folder)
    chosen = CHOICES | (choices or {})
    settings = {"hydra": {"overrides": {"task": list(words)}, "runtime": {"choices": chosen}}}
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create(settings), folder / ".hydra" / "hydra.yaml")
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
        metrics = {"val_loss": loss, "val_bpc": loss and loss / 0.6931, "steps": 20, "train_seconds": 12.0}
        metrics |= {"tokens_per_second": 1000.0, "parameters": 5000, "flops_per_token": 30_000}
        metrics |= {"seed": config.seed, "device": "cpu"}
        (folder / "metrics.json").write_text(json.dumps(metrics | figures))
    return folder


MORE_IS_BETTER = {"monitor": "accuracy", "mode": "max"}
WORD_PIECES = {"data.tokenizer": {"_target_": "chargpt.data.tokenizer.WordPieces", "size": 512}}


@pytest.fixture
def accurate(run: Callable[..., Path]) -> Callable[..., Path]:
    """`accurate("a", 0.5)`: a run whose monitor is its accuracy; one that has not finished, without a score."""

    def made(name: str, score: float | None, *words: str, **settings: Any) -> Path:
        settings = {"loss": 2.0, "came": MORE_IS_BETTER, "column": "accuracy"} | settings
        if score is None:
            return run(name, *words, **{"state": "failed"} | settings)
        return run(name, *words, **settings | MORE_IS_BETTER, score=score)

    return made


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """`run("a", "model.n_layer=4", loss=2.0)`: a run directory called so, below outputs/."""

    def made(name: str, *words: str, **settings: Any) -> Path:
        return write_run(tmp_path / "outputs" / name, *words, **settings)

    return made
