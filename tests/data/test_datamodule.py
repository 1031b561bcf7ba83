"""A text as Lightning wants it: the lecture's split, texts that are too short, shares of devices."""

import hashlib
import itertools
from types import SimpleNamespace

import pytest
import torch

from chargpt.data.dataloader import IGNORE_INDEX
from chargpt.data.datamodule import TextDataModule
from chargpt.data.tokenizer import CharTokenizer
from chargpt.errors import UserError


class Spoken:
    """A corpus that is at hand."""

    name = "spoken"

    def __init__(self, text: str):
        self.text = text

    def read(self) -> str:
        return self.text


def trainer(**changes):
    """The little of Lightning's Trainer that the data look at."""
    state = dict(global_rank=0, world_size=1, lightning_module=SimpleNamespace(batches=0))
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), **state | changes)


def prepared(text: str, **changes) -> TextDataModule:
    data = TextDataModule(Spoken(text), **dict(block_size=8, batch_size=4) | changes)
    data.read()
    return data


@pytest.mark.parametrize("length", [100, 101, 1009])
def test_the_first_nine_tenths_of_the_characters_train_and_the_rest_validates(text, length):
    data = prepared(text[:length])
    train, val = (data.tokenizer.decode(data.split(name)) for name in ("train", "val"))
    assert train == text[: int(0.9 * length)]
    assert val == text[int(0.9 * length) : length]
    assert data.tokenizer.decode(data.split("all")) == text[:length]
    assert data.characters == length


def test_the_fraction_can_be_chosen(text):
    assert len(prepared(text[:1000], train_fraction=0.25).split("train")) == 250


def test_the_vocabulary_is_that_of_the_whole_text_as_in_the_lecture():
    data = prepared("ab" * 90 + "cd" * 10)
    assert data.tokenizer.characters == "abcd"


def test_the_sha256_is_that_of_the_file(text_file):
    data = TextDataModule.from_files(str(text_file), block_size=8, batch_size=4)
    data.setup("fit")
    assert data.corpus_sha256 == hashlib.sha256(text_file.read_bytes()).hexdigest()


def test_the_tokenizer_of_a_trained_model_is_kept():
    data = TextDataModule(Spoken("ab" * 100), block_size=8, batch_size=4)
    data.read(CharTokenizer("abz"))
    assert data.tokenizer.characters == "abz"
    assert data.split("train")[:2].tolist() == [0, 1]


def test_a_text_in_other_characters_than_the_trained_model_knows_is_refused():
    data = TextDataModule(Spoken("abc" * 100), block_size=8, batch_size=4)
    with pytest.raises(UserError, match="'c'"):
        data.read(CharTokenizer("ab"))


@pytest.mark.parametrize("length", [1, 2, 9, 10])
def test_a_text_shorter_than_a_block_is_refused_with_the_block_size_to_lower(text, length):
    with pytest.raises(UserError, match=r"spoken is too short for block_size=9.*Lower model\.block_size"):
        prepared(text[:length], block_size=9)


def test_a_training_part_of_a_block_without_a_last_target_is_refused(text):
    with pytest.raises(UserError, match="leave 10 tokens to train on"):
        prepared(text[:20], block_size=10, train_fraction=0.5)
    assert prepared(text[:20], block_size=9, train_fraction=0.5).characters == 20


def test_the_shortest_text_that_will_do_gives_batches(text):
    data = prepared(text[:20], block_size=17)
    data.trainer = trainer()
    inputs_BT, _ = next(iter(data.train_dataloader()))
    assert inputs_BT.shape == (4, 17)
    assert sum(int((targets_BT != IGNORE_INDEX).sum()) for _, targets_BT in data.val_dataloader()) == 1


@pytest.mark.parametrize("given", [None, CharTokenizer("ab")])
def test_a_text_that_was_refused_is_refused_again(given):
    data = TextDataModule(Spoken("abc"), block_size=8, batch_size=4)
    for _ in range(2):
        with pytest.raises(UserError):
            data.read(given)


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
def test_sizes_that_cannot_be_are_refused_by_name_and_value(text, changes):
    ((name, value),) = changes.items()
    with pytest.raises(UserError, match=f"{name}={value}"):
        prepared(text, **changes)


def test_training_goes_on_with_the_batch_after_the_last_that_was_trained_on(text):
    data = prepared(text)
    data.trainer = trainer()
    loader = data.train_dataloader()
    expected = next(itertools.islice(loader, 6, None))
    data.trainer.lightning_module.batches = 6
    for found in (
        next(iter(loader)),
        next(iter(data.train_dataloader())),
    ):  # a new epoch of Lightning's, a new run
        assert found[0].equal(expected[0])
        assert found[1].equal(expected[1])


@pytest.mark.parametrize(("batch_size", "epoch"), [(4, 9000 // 32), (1, 9000 // 8), (2000, 1)])
def test_an_epoch_has_as_many_whole_batches_as_there_are_tokens_to_train_on(text, batch_size, epoch):
    assert prepared(text[:10000], batch_size=batch_size).batches_per_epoch == epoch


def test_two_devices_train_on_what_one_would(text):
    data = prepared(text)
    data.trainer = trainer()
    whole_BT, _ = next(iter(data.train_dataloader()))
    shares = []
    for rank in range(2):
        data.trainer = trainer(global_rank=rank, world_size=2)
        shares.append(next(iter(data.train_dataloader()))[0])
    assert torch.stack(shares, dim=1).flatten(0, 1).equal(whole_BT)


def test_a_batch_that_cannot_be_shared_equally_is_refused(text):
    data = prepared(text, batch_size=4)
    data.trainer = trainer(world_size=3)
    with pytest.raises(UserError, match=r"batch_size=4 .* multiple of 3"):
        data.train_dataloader()


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("validation_tokens", [1, 64, 10**6])
def test_validation_measures_the_whole_split_however_it_is_cut(text, world_size, validation_tokens):
    data = prepared(text[:3001], validation_tokens=validation_tokens)
    counted = 0
    for rank in range(world_size):
        data.trainer = trainer(global_rank=rank, world_size=world_size)
        counted += sum(int((targets_BT != IGNORE_INDEX).sum()) for _, targets_BT in data.val_dataloader())
    assert counted == len(data.split("val")) - 1


class Pairs:
    """Two characters a token: another tokenizer that keeps the protocol."""

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


def test_another_tokenizer_may_take_several_characters_a_token():
    data = prepared("ab" * 500, tokenizer=Pairs.from_text)
    assert len(data.split("val")) == 50
    assert data.characters_per_token == 2
    assert data.tokenizer.decode(data.split("all")) == "ab" * 500


def test_what_makes_no_tokenizer_is_refused():
    with pytest.raises(UserError, match=r"data\.tokenizer makes a str, which is no tokenizer"):
        prepared("text " * 100, tokenizer=str.upper)


def test_characters_are_one_a_token():
    assert prepared("ab" * 500).characters_per_token == 1


def test_it_warms_its_blocks_up_from_the_first_step_that_is_to_come(text):
    data = prepared(text, block_warmup=6)
    data.trainer = trainer(lightning_module=SimpleNamespace(batches=2))
    lengths = [inputs_BT.shape[1] for inputs_BT, _ in itertools.islice(data.train_dataloader(), 5)]
    assert lengths == [2, 2, 4, 4, 8]
