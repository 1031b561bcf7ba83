"""evaluate.py: loss, perplexity and bits per character of a trained model on a text."""

from collections.abc import Sequence
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from chargpt.cli.sample import resolve_device
from chargpt.config.instantiate import instantiate
from chargpt.config.trust import COMPOSED, Trust, trusted_packages
from chargpt.data.datamodule import TextDataModule
from chargpt.data.text_files import TextFiles
from chargpt.errors import UserError
from chargpt.inference.evaluate import mean_loss
from chargpt.inference.pretrained import data_config, load
from chargpt.model.loss import bits_per_character, perplexity
from chargpt.utils.paths import printable

SPLITS = ("train", "val", "all")


def evaluate(run: str, split: str, device: str, data: DictConfig | None = None, trust: Sequence[str] = ()) -> None:
    """Prints loss, perplexity and bits per character of a run, on its own text or on the text of the config `data`.

    Raises:
        UserError: no such run or text, or a text with characters that are not in the vocabulary.
    """
    if split not in SPLITS:
        raise UserError(f"split={split}: it must be one of {', '.join(SPLITS)}")
    trained = load(run, resolve_device(device), trust)
    # Of a DictConfig, the container is a dict.
    settings = data_config(trained.config) if data is None else cast(dict[str, Any], OmegaConf.to_container(data))
    source = Trust(packages=trusted_packages(trust)) if data is None else COMPOSED
    blocks = {"block_size": 1, "batch_size": 1, "seed": 0}  # only the text is used; it may be short
    text = instantiate({**settings, **blocks}, "data", TextDataModule, source)
    text.read(trained.tokenizer)
    tokens_N = text.split(split)
    loss = mean_loss(trained.model, tokens_N, text.validation_batch_size)  # in tokens, because block_size is 1
    characters = len(trained.tokenizer.decode(tokens_N))
    bits = bits_per_character(loss, characters / len(tokens_N))
    name = printable(text.corpus.name)
    files = text.corpus.describe() if isinstance(text.corpus, TextFiles) else ""
    rows = {
        **({"files": files} if files else {}),
        "run": printable(trained.path),
        "text": f"{name}, {split}: {characters:,} characters, {len(tokens_N) - 1:,} predictions",
        "loss": f"{loss:.4f} nats per token",
        "perplexity": f"{perplexity(loss):.3f}",
        "bits": f"{bits:.4f} per character",
    }
    for key, value in rows.items():
        print(f"{key:>10}  {value}")
