"""evaluate.py: loss, perplexity and bits a character of a trained model on a text."""

import torch
from jaxtyping import Integer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from chargpt.cli.sample import checked_device
from chargpt.config.instantiate import build
from chargpt.data.dataloader import EveryBlock
from chargpt.data.datamodule import TextDataModule
from chargpt.errors import Mistake
from chargpt.inference.pretrained import latest, load, text_settings
from chargpt.model.language_model import LanguageModel
from chargpt.model.loss import bits_per_character, cross_entropy, perplexity
from chargpt.utils.paths import shown

SPLITS = ("train", "val", "all")


def evaluate(run: str, split: str, device: str, data: DictConfig | None = None) -> None:
    """Prints the figures of a run on its own text or on that of the config `data`.

    Raises:
        Mistake: no such run or text, or a text with characters that the model does not know.
    """
    if split not in SPLITS:
        raise Mistake(f"split={split}: it is one of {', '.join(SPLITS)}")
    trained = load(latest() if run == "latest" else run, checked_device(device))
    settings = text_settings(trained.config) if data is None else OmegaConf.to_container(data)
    blocks = {"block_size": 1, "batch_size": 1, "seed": 0}  # only the text is wanted, however short
    text = build({**settings, **blocks}, "data", TextDataModule)
    text.read(trained.tokenizer)
    tokens_N = text.split(split)
    loss = measure(trained.model, tokens_N, text.validation_batch_size)  # whose blocks are single tokens
    characters = len(trained.tokenizer.decode(tokens_N))
    bits = bits_per_character(loss, characters / len(tokens_N))
    name = shown(text.corpus.name)
    rows = {
        "run": shown(trained.path),
        "text": f"{name}, {split}: {characters:,} characters, {len(tokens_N) - 1:,} predictions",
        "loss": f"{loss:.4f} nats a token",
        "perplexity": f"{perplexity(loss):.3f}",
        "bits": f"{bits:.4f} a character",
    }
    for key, value in rows.items():
        print(f"{key:>10}  {value}")


@torch.no_grad()
def measure(model: LanguageModel, tokens_N: Integer[Tensor, " N"], tokens_per_pass: int) -> float:
    """Mean loss in nats a token over N >= 2 tokens, in non-overlapping blocks of the model's block size."""
    tokens_N = tokens_N.to(model.device)
    total = 0.0
    for inputs_BT, targets_BT in EveryBlock(
        tokens_N, model.block_size, max(1, tokens_per_pass // model.block_size)
    ):
        total += cross_entropy(model(inputs_BT), targets_BT, reduction="sum").item()
    return total / (len(tokens_N) - 1)
