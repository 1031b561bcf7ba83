"""The parts of a run, built from its config, each checked by itself."""

from typing import Any

import hydra
import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy

from chargpt.config.build import build
from chargpt.data.datamodule import TextDataModule
from chargpt.data.tokenizer import Tokenizer
from chargpt.errors import Mistake
from chargpt.model.language_model import LanguageModel
from chargpt.training.matrices import MatrixOptimizer
from chargpt.training.module import LanguageModeling
from chargpt.training.run_directory import RunDirectory
from chargpt.training.schedule import Constant


def read_text(config: dict[str, Any], directory: RunDirectory, progress: dict[str, Any] | None) -> TextDataModule:
    """The text, in the vocabulary of the run that goes on.

    Raises:
        Mistake: it cannot be read, or is not the one that the run was trained on.
    """
    data = build(config["data"], "data", TextDataModule)
    if not progress:
        data.read()
        return data
    data.read(build(progress["chargpt"]["tokenizer"], "tokenizer", Tokenizer))
    before = progress["chargpt"]["corpus_sha256"]
    if before != data.corpus_sha256:
        raise Mistake(
            f"{directory.path} was trained on another text: corpus sha256 {before[:12]}..., now "
            f"{data.corpus_sha256[:12]}..."
        )
    return data


def build_module(config: dict[str, Any], data: TextDataModule) -> LanguageModeling:
    """The model with its optimizer and schedule, each tried once. Raises `Mistake` for parts that do not work."""
    model = build(config["model"], "model", LanguageModel, vocab_size=data.tokenizer.vocab_size)
    if data.block_size > model.block_size:
        raise Mistake(
            f"data.block_size={data.block_size} is more than the model takes: leave it out, and set "
            f"model.block_size={data.block_size}"
        )
    try:
        model.check()
    except ValueError as error:
        raise Mistake(f"model: {error}") from error
    optimizer, schedule = build(config["optimizer"], "optimizer"), build(config["schedule"], "schedule", Constant)
    if not callable(optimizer):
        raise Mistake(f"optimizer is a {type(optimizer).__name__}, and must be a part: optimizer=adamw")
    made = optimizer(model)  # Lightning makes its own after the model is on its device; this one only checks
    if not isinstance(made, torch.optim.Optimizer):
        raise Mistake(f"optimizer makes a {type(made).__name__}, and must make a torch.optim.Optimizer")
    return LanguageModeling(model, optimizer, schedule, config["seed"])


def check_strategy(module: LanguageModeling, trainer: L.Trainer) -> None:
    """Raises `Mistake` if the optimizer cannot work with what the strategy leaves of each parameter."""
    if isinstance(trainer.strategy, FSDPStrategy) and isinstance(
        module.make_optimizer(module.model), MatrixOptimizer
    ):
        raise Mistake(
            "optimizer: this one needs whole matrices, and FSDP splits them: take trainer=ddp, or optimizer=adamw"
        )


def check_batch(batch_size: int, model: LanguageModel, devices: int) -> None:
    """Raises `Mistake` if the sequences of a batch cannot be shared out equally."""
    if batch_size % devices:
        raise Mistake(
            f"data.batch_size={batch_size} cannot be shared equally by {devices} devices: make it a multiple of "
            f"{devices}"
        )
    if batch_size % (multiple := model.batch_multiple * devices):
        raise Mistake(
            f"data.batch_size={batch_size}: each of the model's {model.batch_multiple} members wants an equal "
            f"share on each device: make it a multiple of {multiple}"
        )


def instantiate(configs: dict[str, Any] | None, group: str) -> list[Any]:
    """Loggers and callbacks, ours, Lightning's or the user's. They never come from a checkpoint.

    Raises:
        Mistake: one cannot be made, or is neither.
    """
    made = []
    for name, config in (configs or {}).items():
        if not config:
            continue
        try:
            part = hydra.utils.instantiate(config)
            if not isinstance(part, L.Callback | L.pytorch.loggers.Logger):
                raise TypeError(f"{type(part).__name__} is no part of Lightning's")
        except Exception as error:
            cause = error.__cause__ or error
            hint = ": pip install wandb" if "wandb" in str(cause) else ""
            raise Mistake(f"{group}.{name} cannot be made: {str(cause).splitlines()[0]}{hint}") from error
        made.append(part)
    return made
