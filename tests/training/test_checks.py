"""Tokenizers, corpora, schedules and callbacks of the user: what is wrong is one line, before the first step."""

from typing import Any

import lightning as L
import pytest
import torch

from chargpt.data.datamodule import TextDataModule
from chargpt.data.tokenizer import CharTokenizer
from chargpt.errors import UserError
from chargpt.training.checks import check_schedule, check_tokenizer
from tests.training import run_artifacts

HERE = "tests.training.test_checks"
TEXT = "abcabcabc" * 20


class Text:
    name = "text"

    def read(self) -> Any:
        return TEXT


class Number(Text):
    def read(self) -> Any:
        return 7


class Bytes:
    """A correct tokenizer, and what each test changes."""

    vocab_size = 256

    def encode(self, text):
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def decode(self, tokens_N):
        return bytes(tokens_N.tolist()).decode(errors="replace")

    def as_config(self) -> Any:
        return {"_target_": f"{HERE}.{type(self).__name__}"}

    @classmethod
    def from_text(cls, text):
        return cls()


class ReturnsAList(Bytes):
    def encode(self, text):
        return [1, 2]


class SmallVocabulary(Bytes):
    vocab_size = 98


class CannotEncode(Bytes):
    def encode(self, text):
        raise KeyError(text[0])


class WithoutConfig(Bytes):
    def as_config(self):
        return None


class WrongConfig(Bytes):
    def as_config(self):
        return {"_target_": f"{HERE}.Byts"}


class OtherVocabulary(Bytes):
    def as_config(self):
        return {"_target_": f"{HERE}.SmallVocabulary"}


class CannotDecode(Bytes):
    def decode(self, tokens_N):
        raise ZeroDivisionError


class State(L.Callback):
    def state_dict(self):
        return {"steps": [1, object()]}


def read(tokenizer: type, corpus: Any = None) -> TextDataModule:
    data = TextDataModule(corpus or Text(), block_size=4, batch_size=2, tokenizer=tokenizer.from_text)
    data.read()
    check_tokenizer(data.tokenizer)
    return data


@pytest.mark.parametrize("tokenizer", [Bytes, CharTokenizer])
def test_a_correct_tokenizer_is_accepted(tokenizer):
    assert read(tokenizer).tokenizer.vocab_size in (3, 256)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (ReturnsAList, "must return a 1-D tensor of integers"),
        (SmallVocabulary, "returns tokens from 97 to 99; its vocab_size is 98"),
        (CannotEncode, r"CannotEncode cannot encode this text \(KeyError: 'a'\)"),
        (WithoutConfig, "cannot be built again from its as_config"),
        (WrongConfig, "there is no Byts"),
        (OtherVocabulary, "has another vocab_size"),
        (CannotDecode, "ZeroDivisionError"),
    ],
)
def test_an_unsuitable_tokenizer_is_a_user_error(tokenizer, message):
    with pytest.raises(UserError, match=message):
        read(tokenizer)


def test_an_unsuitable_corpus_is_a_user_error():
    with pytest.raises(UserError, match="must return a text, not a int"):
        read(Bytes, Number())


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda step: 1.0, r"is not a function of \(step, max_steps, time\) \(TypeError"),
        (lambda step, max_steps, time: torch.ones(2), "returns a Tensor"),
        (lambda step, max_steps, time: float("nan"), "returns nan at step 0"),
        (0.5, "is _partial_: true missing"),
    ],
)
def test_an_unsuitable_schedule_is_a_user_error(schedule, message):
    with pytest.raises(UserError, match=message):
        check_schedule(schedule)


def test_a_callback_whose_state_cannot_be_loaded_again_ends_the_run_at_the_first_checkpoint(run_cli, tiny, tmp_path):
    outcome = run_cli("train", *tiny, f"+callbacks.mine._target_={HERE}.State", "hydra.run.dir=run")
    assert outcome.code == 1
    assert "callback State: state_dict()['steps'][1] is a object" in outcome.err.splitlines()[-1]
    assert run_artifacts.status(tmp_path / "run")["state"] == "failed"
    assert not [*(tmp_path / "run" / "checkpoints").glob("*")]


@pytest.mark.parametrize(("name", "hint"), [("val_loss", "did you mean val/loss"), ("accuracy", "score, val/loss")])
def test_an_unknown_metric_of_a_callback_is_a_user_error_before_training(run_cli, tiny, tmp_path, name, hint):
    stop = ["+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping", f"+callbacks.stop.monitor={name}"]
    outcome = run_cli("train", *tiny, *stop)
    assert outcome.code == 2
    assert f"EarlyStopping monitors {name}, which is not logged" in outcome.err
    assert hint in outcome.err
    assert not (tmp_path / "outputs").exists()


LIGHTNING = "lightning.pytorch.callbacks"


def test_a_callback_whose_weights_no_checkpoint_contains_is_a_user_error(run_cli, tiny, tmp_path):
    averaging = [f"+callbacks.swa._target_={LIGHTNING}.StochasticWeightAveraging", "+callbacks.swa.swa_lrs=1e-3"]
    outcome = run_cli("train", *tiny, *averaging, "trainer.max_epochs=2")
    assert outcome.code == 2
    assert "use trainer.ema_decay=0.99" in outcome.err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_lightnings_average_of_the_weights_is_validated_and_saved(run_cli, tiny, tmp_path):
    averaging = [f"+callbacks.ema._target_={LIGHTNING}.EMAWeightAveraging", "+callbacks.ema.decay=0.5"]
    losses = []
    for callbacks in ([], averaging):
        run = tmp_path / f"run{len(losses)}"
        assert run_cli("train", *tiny, *callbacks, f"hydra.run.dir={run}").code == 0
        evaluated = run_cli("evaluate", f"run={run}")
        assert f"{run_artifacts.metrics(run)['val_loss']:.4f}" in evaluated.out, evaluated.err
        losses.append(run_artifacts.metrics(run)["val_loss"])
    assert losses[0] != losses[1]
