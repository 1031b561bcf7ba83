"""A text as Lightning wants it: read, tokenized, split 90/10, cut into batches on the device."""

import hashlib
from collections.abc import Callable
from functools import partial

import lightning as L
import torch
from jaxtyping import Integer
from torch import Tensor

from chargpt.data.corpus import Corpus, TextFiles, TinyShakespeare
from chargpt.data.dataloader import EvalBlockLoader, RandomBlockLoader
from chargpt.data.tokenizer import CharTokenizer, Tokenizer
from chargpt.errors import UserError


class TextDataModule(L.LightningDataModule):
    """Random blocks of the first part of a text to train on, every block of the rest to validate on.

    Args:
        corpus: where the text comes from.
        block_size: T, tokens of context.
        batch_size: global number of blocks of one forward pass, over all devices.
        train_fraction: share of the characters to train on, from the front.
        validation_tokens: about how many tokens one validation forward pass takes on a device.
        block_warmup: batches at the start that are cut into shorter blocks; see `RandomBlockLoader`.
        tokenizer: makes a tokenizer from the whole text (the lecture's choice: validation text included).
        seed: the run's seed; global batch k depends on nothing but it and k.

    Raises:
        UserError: on sizes that cannot be, here; on texts that cannot be read or are too short, in `read`.
    """

    def __init__(
        self,
        corpus: Corpus,
        block_size: int,
        batch_size: int,
        train_fraction: float = 0.9,
        validation_tokens: int = 4096,
        block_warmup: int = 0,
        tokenizer: Callable[[str], Tokenizer] = CharTokenizer.from_text,
        seed: int = 1337,
    ):
        super().__init__()
        sizes = dict(block_size=block_size, batch_size=batch_size, validation_tokens=validation_tokens)
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"{name}={value}: it must be 1 or more")
        if block_warmup < 0:
            raise UserError(f"data.block_warmup={block_warmup}: it must not be negative")
        if not 0 < train_fraction < 1:
            raise UserError(f"train_fraction={train_fraction}: it must lie between 0 and 1, for example 0.9")
        self.corpus = corpus
        self.block_size = block_size
        self.batch_size = batch_size
        self.train_fraction = train_fraction
        self.validation_batch_size = max(1, validation_tokens // block_size)
        self._block_warmup = block_warmup
        self._make_tokenizer = tokenizer
        self._seed = seed
        self.tokenizer: Tokenizer | None = None

    @classmethod
    def from_tiny_shakespeare(cls, cache_dir: str | None = None, **settings) -> "TextDataModule":
        """`data=tinyshakespeare`."""
        return cls(TinyShakespeare(cache_dir), **settings)

    @classmethod
    def from_files(cls, path: str, **settings) -> "TextDataModule":
        """`data=text_file data.path=...`."""
        return cls(TextFiles(path), **settings)

    def read(self, tokenizer: Tokenizer | None = None) -> None:
        """Reads and tokenizes the text, once; with `tokenizer` in place of one made from the text.

        Raises:
            UserError: the text cannot be had, is too short, or holds what `tokenizer` does not know.
        """
        if self.tokenizer is not None:
            return
        text = self.corpus.read()
        self.corpus_sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.characters = len(text)
        split = int(self.train_fraction * len(text))
        tokenizer = tokenizer or self._make_tokenizer(text)
        if not isinstance(tokenizer, Tokenizer):
            raise UserError(f"data.tokenizer makes a {type(tokenizer).__name__}, which is no tokenizer")
        self.train_tokens_N = tokenizer.encode(text[:split])
        self.val_tokens_N = tokenizer.encode(text[split:])
        self.characters_per_token = (len(text) - split) / max(1, len(self.val_tokens_N))
        if len(self.train_tokens_N) < self.block_size + 1 or len(self.val_tokens_N) < 2:
            raise UserError(
                f"{self.corpus.name} is too short for block_size={self.block_size}: its {len(text):,} "
                f"characters leave {len(self.train_tokens_N):,} tokens to train on and "
                f"{len(self.val_tokens_N):,} to validate on. Lower model.block_size or bring more text"
            )
        self.tokenizer = tokenizer

    @property
    def batches_per_epoch(self) -> int:
        """Batches that hold as many tokens as there are to train on, rounded down, at least 1."""
        return max(1, len(self.train_tokens_N) // (self.batch_size * self.block_size))

    def split(self, name: str) -> Integer[Tensor, " N"]:
        """The tokens of `train`, `val` or `all`."""
        train_N, val_N = self.train_tokens_N, self.val_tokens_N
        return {"train": train_N, "val": val_N, "all": torch.cat((train_N, val_N))}[name]

    def setup(self, stage: str) -> None:
        self.read()

    def train_dataloader(self) -> RandomBlockLoader:
        share = self._share()
        if self.batch_size % share["world_size"]:
            raise UserError(
                f"data.batch_size={self.batch_size} cannot be shared equally by {share['world_size']} devices. "
                f"Make it a multiple of {share['world_size']}"
            )
        module = self.trainer.lightning_module
        blocks = partial(RandomBlockLoader, self._on_device(self.train_tokens_N), self.block_size)
        settings = {"first": lambda: module.batches, "warmup": self._block_warmup}
        return blocks(self.batch_size, self._seed, **settings, **share)

    def val_dataloader(self) -> EvalBlockLoader:
        tokens_N = self._on_device(self.val_tokens_N)
        return EvalBlockLoader(tokens_N, self.block_size, self.validation_batch_size, **self._share())

    def _share(self) -> dict[str, int]:
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _on_device(self, tokens_N: Integer[Tensor, " N"]) -> Integer[Tensor, " N"]:
        device: torch.device = self.trainer.strategy.root_device
        return tokens_N.to(device)
