"""The Lightning data module: reads, splits and tokenizes a corpus and provides batches on the device."""

import hashlib
from collections.abc import Callable, Sequence
from typing import cast

import lightning as L
import torch
from jaxtyping import Integer
from torch import Tensor

from chargpt.data.corpus import Corpus, TinyShakespeare
from chargpt.data.dataloader import EvalBlockLoader, RandomBlockLoader, limit_batches
from chargpt.data.text_files import SUFFIXES, TextFiles
from chargpt.data.tokenizer import CharTokenizer, Tokenizer, encode
from chargpt.errors import UserError

# A validation of the default model takes about four seconds on two cores. Tiny Shakespeare's split has 111,540 tokens.
AUTO_VALIDATION_TOKENS = 2**17


class TextDataModule(L.LightningDataModule):
    """Random blocks of the first part of a text for training, every block of the rest for validation.

    Args:
        corpus: the source of the text.
        block_size: T, tokens of context.
        batch_size: global number of blocks of one forward pass, over all devices.
        train_fraction: the fraction of the characters, from the start of the text, used for training.
        validation_tokens: the approximate number of tokens of one validation forward pass on one device.
        max_validation_tokens: the approximate number of tokens of a validation during training, in blocks at equal
            distances over the split; None for the complete split, `auto` for at most `AUTO_VALIDATION_TOKENS`.
        block_warmup: the number of batches at the start that have shorter blocks; see `RandomBlockLoader`.
        tokenizer: builds a tokenizer from the complete text (as in the lecture, validation text included).
        seed: the run's seed; global batch k depends only on it and on k.

    Attributes:
        limit_train_batches: the length of an epoch: a number of batches, or a fraction of those of the split; None for
            all.
        overfit_batches: the same, and training repeats the batches 0 to N - 1; None for no repetition.

    Raises:
        UserError: a size is invalid. `read` raises it if the text cannot be read or is too short.
    """

    def __init__(
        self,
        corpus: Corpus,
        block_size: int,
        batch_size: int,
        train_fraction: float = 0.9,
        validation_tokens: int = 4096,
        max_validation_tokens: int | str | None = None,
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
        if max_validation_tokens == "auto":
            max_validation_tokens = AUTO_VALIDATION_TOKENS
        if max_validation_tokens is not None and not (
            isinstance(max_validation_tokens, int) and max_validation_tokens > 0
        ):
            raise UserError(
                f"data.max_validation_tokens={max_validation_tokens}: it must be auto, a number of tokens, or null for "
                f"the complete validation split"
            )
        if not 0 < train_fraction < 1:
            raise UserError(f"train_fraction={train_fraction}: it must lie between 0 and 1, for example 0.9")
        if not isinstance(corpus, Corpus):
            raise UserError(f"data: a {type(corpus).__name__} is not a corpus, which has a name and read()")
        self.corpus = corpus
        self.block_size = block_size
        self.batch_size = batch_size
        self.train_fraction = train_fraction
        self.validation_batch_size = max(1, validation_tokens // block_size)
        self._max_validation_tokens = max_validation_tokens
        self._block_warmup = block_warmup
        self._make_tokenizer = tokenizer
        self._seed = seed
        self.tokenizer: Tokenizer | None = None
        self.limit_train_batches: int | float | None = None
        self.overfit_batches: int | float | None = None

    @classmethod
    def from_tiny_shakespeare(cls, cache_dir: str | None = None, **settings) -> "TextDataModule":
        """`data=tinyshakespeare`."""
        return cls(TinyShakespeare(cache_dir), **settings)

    @classmethod
    def from_files(cls, path: str | Sequence[str], suffixes: Sequence[str] = SUFFIXES, **settings) -> "TextDataModule":
        """`data=text_file data.path=...`."""
        return cls(TextFiles(path, suffixes), **settings)

    def read(self, tokenizer: Tokenizer | None = None) -> None:
        """Reads and tokenizes the text, once.

        Args:
            tokenizer: used instead of one built from the text.

        Raises:
            UserError: the text cannot be read, is too short, or contains characters unknown to `tokenizer`.
        """
        if self.tokenizer is not None:
            return
        text = self.corpus.read()
        if not isinstance(text, str):
            raise UserError(f"data: read() of {self.corpus.name} must return a text, not a {type(text).__name__}")
        self.corpus_sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.characters = len(text)
        split = int(self.train_fraction * len(text))
        tokenizer = tokenizer or self._make_tokenizer(text)
        if not isinstance(tokenizer, Tokenizer):
            raise UserError(f"data.tokenizer builds a {type(tokenizer).__name__}, which is not a Tokenizer")
        self.train_tokens_N = encode(tokenizer, text[:split])
        self.val_tokens_N = encode(tokenizer, text[split:])
        self.characters_per_token = (len(text) - split) / max(1, len(self.val_tokens_N))
        if len(self.train_tokens_N) < self.block_size + 1 or len(self.val_tokens_N) < 2:
            raise UserError(
                f"{self.corpus.name} is too short for block_size={self.block_size}: its {len(text):,} "
                f"characters give {len(self.train_tokens_N):,} tokens for training and "
                f"{len(self.val_tokens_N):,} for validation. Lower model.block_size or use a longer text"
            )
        self.tokenizer = tokenizer

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches with as many tokens as the training split, rounded down, at least 1; or the limit."""
        batches = max(1, len(self.train_tokens_N) // (self.batch_size * self.block_size))
        if self.overfit_batches:
            return limit_batches("trainer.overfit_batches", self.overfit_batches, batches)
        return limit_batches("trainer.limit_train_batches", self.limit_train_batches, batches)

    def split(self, name: str) -> Integer[Tensor, " N"]:
        """The tokens of `train`, `val` or `all`."""
        train_N, val_N = self.train_tokens_N, self.val_tokens_N
        return {"train": train_N, "val": val_N, "all": torch.cat((train_N, val_N))}[name]

    def setup(self, stage: str) -> None:
        self.read()

    def train_dataloader(self) -> RandomBlockLoader:
        assert self.trainer is not None  # Lightning sets it first
        world_size = self.trainer.world_size
        if self.batch_size % world_size:
            raise UserError(
                f"data.batch_size={self.batch_size} cannot be split equally among {world_size} devices: "
                f"make it a multiple of {world_size}"
            )
        module = self.trainer.lightning_module
        return RandomBlockLoader(
            self._on_device(self.train_tokens_N),
            self.block_size,
            self.batch_size,
            self._seed,
            first=lambda: cast(int, module.batches),  # torch types every attribute as Tensor or Module
            warmup=self._block_warmup,
            repeat=self.batches_per_epoch if self.overfit_batches else None,
            **self._rank_and_world_size(),
        )

    @property
    def limits_validation(self) -> bool:
        """Whether a validation during training reads only a part of the validation split."""
        return self.validation_part < len(self.val_tokens_N) - 1

    @property
    def validation_part(self) -> int:
        """The number of predictions of a validation during training."""
        complete = len(self.val_tokens_N) - 1
        if self._max_validation_tokens is None or self._max_validation_tokens >= complete:
            return complete
        return self.block_size * max(1, self._max_validation_tokens // self.block_size)

    def validation_batches(self, world_size: int) -> int:
        """The number of batches of a validation during training on each device."""
        return len(self._validation_loader(self.val_tokens_N, 0, world_size, self._max_validation_tokens))

    def val_dataloader(self) -> EvalBlockLoader:
        return self._validation_loader(
            self._on_device(self.val_tokens_N), **self._rank_and_world_size(), max_tokens=self._max_validation_tokens
        )

    def complete_val_dataloader(self) -> EvalBlockLoader:
        """The batches of the complete validation split."""
        return self._validation_loader(self._on_device(self.val_tokens_N), **self._rank_and_world_size())

    def _validation_loader(
        self, tokens_N: Integer[Tensor, " N"], rank: int, world_size: int, max_tokens: int | None = None
    ) -> EvalBlockLoader:
        return EvalBlockLoader(tokens_N, self.block_size, self.validation_batch_size, rank, world_size, max_tokens)

    def _rank_and_world_size(self) -> dict[str, int]:
        assert self.trainer is not None
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _on_device(self, tokens_N: Integer[Tensor, " N"]) -> Integer[Tensor, " N"]:
        assert self.trainer is not None
        return tokens_N.to(self.trainer.strategy.root_device)
