"""Tests of the data module: the lecture's split, texts that are too short, and batches of several devices."""

import hashlib
import itertools
from types import SimpleNamespace

import pytest
import torch

from chargpt.data.dataloader import IGNORE_INDEX
from chargpt.data.datamodule import TextDataModule
from chargpt.data.tokenizer import CharTokenizer
from chargpt.errors import UserError


class InMemoryCorpus:
    """A corpus of a given text."""

    name = "memory"

    def __init__(self, text: str):
        self.text = text

    def read(self) -> str:
        return self.text


def trainer(**changes):
    """The attributes of Lightning's Trainer that the data module reads."""
    state = dict(global_rank=0, world_size=1, lightning_module=SimpleNamespace(batches=0))
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), **state | changes)


def prepared(text: str, **changes) -> TextDataModule:
    data = TextDataModule(InMemoryCorpus(text), **dict(block_size=8, batch_size=4) | changes)
    data.read()
    return data


@pytest.mark.parametrize("length", [100, 101, 1009])
def test_the_first_nine_tenths_are_for_training_and_the_rest_for_validation(text, length):
    data = prepared(text[:length])
    train, val = (data.tokenizer.decode(data.split(name)) for name in ("train", "val"))
    assert train == text[: int(0.9 * length)]
    assert val == text[int(0.9 * length) : length]
    assert data.tokenizer.decode(data.split("all")) == text[:length]
    assert data.characters == length


def test_the_train_fraction_determines_the_split(text):
    assert len(prepared(text[:1000], train_fraction=0.25).split("train")) == 250


def test_the_vocabulary_is_that_of_the_complete_text_as_in_the_lecture():
    data = prepared("ab" * 90 + "cd" * 10)
    assert data.tokenizer.characters == "abcd"


def test_the_sha256_is_that_of_the_file(text_file):
    data = TextDataModule.from_files(str(text_file), block_size=8, batch_size=4)
    data.setup("fit")
    assert data.corpus_sha256 == hashlib.sha256(text_file.read_bytes()).hexdigest()


def test_the_tokenizer_of_a_trained_model_is_used():
    data = TextDataModule(InMemoryCorpus("ab" * 100), block_size=8, batch_size=4)
    data.read(CharTokenizer("abz"))
    assert data.tokenizer.characters == "abz"
    assert data.split("train")[:2].tolist() == [0, 1]


def test_a_text_with_characters_unknown_to_the_trained_model_is_a_user_error():
    data = TextDataModule(InMemoryCorpus("abc" * 100), block_size=8, batch_size=4)
    with pytest.raises(UserError, match="'c'"):
        data.read(CharTokenizer("ab"))


@pytest.mark.parametrize("length", [1, 2, 9, 10])
def test_the_message_about_a_too_short_text_suggests_a_lower_block_size(text, length):
    with pytest.raises(UserError, match=r"memory is too short for block_size=9.*Lower model\.block_size"):
        prepared(text[:length], block_size=9)


def test_a_training_split_of_one_block_without_the_last_target_is_too_short(text):
    with pytest.raises(UserError, match="give 10 tokens for training"):
        prepared(text[:20], block_size=10, train_fraction=0.5)
    assert prepared(text[:20], block_size=9, train_fraction=0.5).characters == 20


def test_the_shortest_accepted_text_gives_batches(text):
    data = prepared(text[:20], block_size=17)
    data.trainer = trainer()
    inputs_BT, _ = next(iter(data.train_dataloader()))
    assert inputs_BT.shape == (4, 17)
    assert sum(int((targets_BT != IGNORE_INDEX).sum()) for _, targets_BT in data.val_dataloader()) == 1


@pytest.mark.parametrize("tokenizer", [None, CharTokenizer("ab")])
def test_a_second_read_after_an_error_raises_the_error_again(tokenizer):
    data = TextDataModule(InMemoryCorpus("abc"), block_size=8, batch_size=4)
    for _ in range(2):
        with pytest.raises(UserError):
            data.read(tokenizer)


@pytest.mark.parametrize(
    "changes",
    [
        dict(block_size=0),
        dict(block_size=-8),
        dict(batch_size=0),
        dict(batch_size=-1),
        dict(train_fraction=1.5),
        dict(train_fraction=1.0),
        dict(train_fraction=0.0),
        dict(train_fraction=-0.1),
        dict(train_fraction=float("nan")),
    ],
)
def test_the_message_about_an_invalid_size_names_it_and_its_value(text, changes):
    ((name, value),) = changes.items()
    with pytest.raises(UserError, match=f"{name}={value}"):
        prepared(text, **changes)


def test_training_resumes_with_the_next_batch(text):
    data = prepared(text)
    data.trainer = trainer()
    loader = data.train_dataloader()
    expected = next(itertools.islice(loader, 6, None))
    data.trainer.lightning_module.batches = 6
    new_epoch, new_run = next(iter(loader)), next(iter(data.train_dataloader()))
    for batch in (new_epoch, new_run):
        assert batch[0].equal(expected[0])
        assert batch[1].equal(expected[1])


@pytest.mark.parametrize(("batch_size", "epoch"), [(4, 9000 // 32), (1, 9000 // 8), (2000, 1)])
def test_an_epoch_is_the_number_of_training_tokens_in_full_batches(text, batch_size, epoch):
    assert prepared(text[:10000], batch_size=batch_size).batches_per_epoch == epoch


def test_two_devices_train_on_the_same_blocks_as_one(text):
    data = prepared(text)
    data.trainer = trainer()
    single_BT, _ = next(iter(data.train_dataloader()))
    shares = []
    for rank in range(2):
        data.trainer = trainer(global_rank=rank, world_size=2)
        shares.append(next(iter(data.train_dataloader()))[0])
    assert torch.stack(shares, dim=1).flatten(0, 1).equal(single_BT)


def test_a_batch_size_that_is_not_a_multiple_of_the_devices_is_a_user_error(text):
    data = prepared(text, batch_size=4)
    data.trainer = trainer(world_size=3)
    with pytest.raises(UserError, match=r"batch_size=4 .* multiple of 3"):
        data.train_dataloader()


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("validation_tokens", [1, 64, 10**6])
def test_validation_counts_every_prediction_for_any_batch_size_and_world_size(text, world_size, validation_tokens):
    data = prepared(text[:3001], validation_tokens=validation_tokens)
    counted = 0
    for rank in range(world_size):
        data.trainer = trainer(global_rank=rank, world_size=world_size)
        counted += sum(int((targets_BT != IGNORE_INDEX).sum()) for _, targets_BT in data.val_dataloader())
    assert counted == len(data.split("val")) - 1


class Pairs:
    """Another implementation of the tokenizer protocol, with two characters per token."""

    def __init__(self, characters: str):
        self._single = CharTokenizer(characters)
        self.vocab_size = len(characters) ** 2

    @classmethod
    def from_text(cls, text: str) -> "Pairs":
        return cls("".join(sorted(set(text))))

    def encode(self, text: str):
        tokens_N = self._single.encode(text).long()
        return tokens_N[::2] * self._single.vocab_size + tokens_N[1::2]

    def decode(self, tokens_N) -> str:
        V = self._single.vocab_size
        return self._single.decode(torch.stack((tokens_N // V, tokens_N % V), dim=1).flatten())

    def as_config(self) -> dict:
        return {}


def test_a_tokenizer_may_have_several_characters_per_token():
    data = prepared("ab" * 500, tokenizer=Pairs.from_text)
    assert len(data.split("val")) == 50
    assert data.characters_per_token == 2
    assert data.tokenizer.decode(data.split("all")) == "ab" * 500


def test_a_tokenizer_setting_that_builds_something_else_is_a_user_error():
    with pytest.raises(UserError, match=r"data\.tokenizer builds a str, which is not a Tokenizer"):
        prepared("text " * 100, tokenizer=str.upper)


def test_the_default_tokenizer_has_one_character_per_token():
    assert prepared("ab" * 500).characters_per_token == 1


def test_the_block_warmup_resumes_at_the_next_batch(text):
    data = prepared(text, block_warmup=6)
    data.trainer = trainer(lightning_module=SimpleNamespace(batches=2))
    lengths = [inputs_BT.shape[1] for inputs_BT, _ in itertools.islice(data.train_dataloader(), 5)]
    assert lengths == [2, 2, 4, 4, 8]


@pytest.mark.parametrize(
    ("limit", "part"), [(None, 300), ("auto", 300), (299, 296), (100, 96), (8, 8), (1, 8), (300, 300), (10**9, 300)]
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_validation_during_training_may_read_a_part_of_the_split(text, limit, part, world_size):
    data = prepared(text[:3010], max_validation_tokens=limit)
    assert (data.validation_part, data.limits_validation) == (part, part < 300)
    for loader, expected in ((data.val_dataloader, part), (data.complete_val_dataloader, 300)):
        counted = 0
        for rank in range(world_size):
            data.trainer = trainer(global_rank=rank, world_size=world_size)
            counted += sum(int((targets_BT != IGNORE_INDEX).sum()) for _, targets_BT in loader())
        # A part may contain the last block of the split, which is shorter.
        assert expected - 8 < counted <= expected
    assert data.validation_batches(world_size) == len(data.val_dataloader())


def test_validations_of_long_texts_are_limited_by_default(monkeypatch, text):
    monkeypatch.setattr("chargpt.data.datamodule.AUTO_VALIDATION_TOKENS", 64)
    assert prepared(text[:3000], max_validation_tokens="auto").validation_part == 64
    assert prepared(text[:3000]).validation_part == 299, "for checkpoints of older versions"


@pytest.mark.parametrize("limit", [0, -1, "all", ""])
def test_an_invalid_limit_is_a_user_error(text, limit):
    with pytest.raises(UserError, match=r"data\.max_validation_tokens=.*auto"):
        prepared(text, max_validation_tokens=limit)
