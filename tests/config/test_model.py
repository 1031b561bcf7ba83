"""Any module as a model: what the config passes to it, and what is reported in one line before the first step."""

import pytest
import torch
from torch import nn

from chargpt.config.model import build_model
from chargpt.config.trust import COMPOSED, FILE
from chargpt.errors import UserError
from chargpt.model.adapters import ModuleAdapter
from chargpt.model.bigram import Bigram
from tests.conftest import REPO, process
from tests.training.run_artifacts import checkpoint, metrics

V = 7
HERE = "tests.config.test_model"
DEFAULT_RECIPE_LINE = "mine has no recipe of its own: recipe=default is used"


class Mine(nn.Module):
    def __init__(self, vocab_size: int, n_embd: int = 8):
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocab_size, n_embd), nn.Linear(n_embd, vocab_size)

    def forward(self, tokens_BT):
        return self.head(self.embedding(tokens_BT))


class WithBlockSize(Mine):
    def __init__(self, vocab_size: int, block_size: int, **settings):
        super().__init__(vocab_size, **settings)
        self.position = nn.Embedding(block_size, 8)
        self.block_size = block_size


class WithConfig(Mine):
    """Receives the size of the vocabulary in a nested object only."""

    def __init__(self, config: dict, parts: list):
        super().__init__(config["vocab_size"])
        self.parts = parts


class ReturnsLoss(Mine):
    def forward(self, tokens_BT):
        return super().forward(tokens_BT), None


class Unused(Mine):
    def __init__(self, vocab_size: int):
        super().__init__(vocab_size)
        self.unused = nn.Linear(3, 3)


class Fixed(nn.Module):
    """Without parameters."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, tokens_BT):
        return torch.nn.functional.one_hot(tokens_BT, self.vocab_size).float()


class OnlyBlocks(Mine):
    """Requires a complete block."""

    def forward(self, tokens_BT):
        assert tokens_BT.shape[1] == 8
        return super().forward(tokens_BT)


class Detached(Mine):
    def forward(self, tokens_BT):
        return super().forward(tokens_BT).detach()


class NotANumber(Mine):
    def forward(self, tokens_BT):
        return super().forward(tokens_BT) * float("nan")


class Reversed(Mine):
    """Sees later tokens."""

    def forward(self, tokens_BT):
        return super().forward(tokens_BT.flip(1))


class Raises(Mine):
    def forward(self, tokens_BT):
        raise ZeroDivisionError("a bug\nin two lines")


def build(name: str, **settings) -> ModuleAdapter:
    return build_model({"_target_": f"{HERE}.{name}", "block_size": 4, **settings}, V, COMPOSED)


def test_a_module_receives_the_size_of_the_vocabulary_and_not_the_block_size():
    model = build("Mine", n_embd=5)
    assert isinstance(model, ModuleAdapter)
    assert (model.vocab_size, model.block_size) == (V, 4)
    assert model.module.embedding.weight.shape == (V, 5)


def test_a_module_that_accepts_the_block_size_receives_it():
    assert build("WithBlockSize", block_size=9).module.block_size == 9


def test_vocab_size_is_filled_in_at_every_level():
    config = {"parts": [{"vocab_size": "???"}, {"vocab_size": 3}], "config": {"vocab_size": "???"}}
    module = build("WithConfig", **config).module
    assert module.head.out_features == V
    assert module.parts == [{"vocab_size": V}, {"vocab_size": 3}]


def test_a_language_model_is_not_wrapped():
    config = {"_target_": "chargpt.model.bigram.Bigram", "block_size": 4, "std": 1.0}
    assert isinstance(build_model(config, V), Bigram)


@pytest.mark.parametrize("block_size", [{}, {"block_size": 0}, {"block_size": "x"}, {"block_size": None}])
def test_a_module_without_a_valid_block_size_is_refused(block_size):
    """The config may be that of a damaged or hostile file."""
    with pytest.raises(UserError, match=r"model\.block_size=.* it must be the number of tokens"):
        build_model({"_target_": "torch.nn.Embedding", "embedding_dim": 7, "num_embeddings": 7, **block_size}, 7, FILE)


def test_an_object_that_is_not_a_module_is_refused():
    with pytest.raises(UserError, match=r"^model must be a Module, not dict$"):
        build_model({"_target_": "builtins.dict", "block_size": 4}, V, COMPOSED)


@pytest.fixture
def mine(run_cli, tmp_path, tiny, monkeypatch):
    """`mine("Mine", ...)`: trains one of the models above, with a config in `--config-dir`."""

    def train(name: str, *overrides: str, block_size: str = "block_size: 8\n"):
        (tmp_path / "my_conf" / "model").mkdir(parents=True, exist_ok=True)
        (tmp_path / "my_conf" / "model" / "mine.yaml").write_text(f"_target_: {HERE}.{name}\n{block_size}")
        settings = [setting for setting in tiny if not setting.startswith("model")]
        return run_cli("train", "--config-dir=my_conf", "model=mine", *settings, *overrides)

    return train


def test_a_model_without_a_recipe_trains_by_the_default_one(mine, tmp_path, caplog):
    caplog.set_level("INFO")
    outcome = mine("Mine", "hydra.run.dir=outputs/run")
    assert outcome.code == 0, outcome.err
    assert DEFAULT_RECIPE_LINE in caplog.messages
    config = (tmp_path / "outputs" / "run" / ".hydra" / "config.yaml").read_text()
    assert "chargpt.optim.adamw.adamw" in config and "WarmupCosine" in config
    assert metrics(tmp_path / "outputs" / "run")["flops_per_token"] is not None


@pytest.mark.parametrize("overrides", [["optimizer=muon"], ["schedule=constant"], ["recipe=bigram"]])
def test_parts_of_the_recipe_can_be_selected(mine, overrides, caplog):
    caplog.set_level("INFO")
    outcome = mine("Mine", *overrides, "trainer.max_steps=2")
    assert outcome.code == 0, outcome.err
    assert (DEFAULT_RECIPE_LINE in caplog.messages) == ("recipe=bigram" not in overrides)


@pytest.mark.slow
def test_a_sweep_over_models_with_and_without_a_recipe(tmp_path, tiny):
    (tmp_path / "my_conf" / "model").mkdir(parents=True)
    (tmp_path / "my_conf" / "model" / "mine.yaml").write_text(f"_target_: {HERE}.Mine\nblock_size: 8\n")
    sweep = ["-m", "--config-dir=my_conf", "model=mine,bigram", "optimizer=muon", "name=models"]
    settings = [setting for setting in tiny if not setting.startswith("model")]
    outcome = process(tmp_path, "train", *sweep, *settings, timeout=400, PYTHONPATH=str(REPO))
    assert outcome.code == 0, outcome.err
    assert len([*(tmp_path / "outputs" / "models").rglob("metrics.json")]) == 2


def test_an_optimizer_of_torch_receives_the_parameters_and_needs_no_lr(mine, tmp_path):
    (tmp_path / "my_conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "my_conf" / "optimizer" / "adadelta.yaml").write_text("_target_: torch.optim.Adadelta\n")
    outcome = mine("Mine", "optimizer=adadelta", "trainer.max_steps=2", "hydra.run.dir=outputs/run")
    assert outcome.code == 0, outcome.err
    assert checkpoint(tmp_path / "outputs" / "run")["optimizer_states"][0]["state"][0]["acc_delta"].any()


@pytest.mark.parametrize(
    ("name", "block_size", "message"),
    [
        ("Mine", "", "model.block_size"),
        ("ReturnsLoss", "block_size: 8", "returns tuple (use chargpt.model.adapters.NanoGPT)"),
        ("Raises", "block_size: 8", "a forward pass with 8 tokens fails (ZeroDivisionError: a bug)"),
        ("Fixed", "block_size: 8", "depend on none of its 0 trainable parameters"),
        ("Detached", "block_size: 8", "depend on none of its 3 trainable parameters"),
        ("OnlyBlocks", "block_size: 8", "a forward pass with 1 token fails (AssertionError"),
        ("NotANumber", "block_size: 8", "the logits of NotANumber are NaN"),
        ("Missing", "block_size: 8", f"there is no Missing in {HERE}"),
        ("Mine", "block_size: 8\nn_embdd: 3", "did you mean n_embd?"),
    ],
)
def test_an_unsuitable_model_is_a_user_error_of_one_line(mine, tmp_path, name, block_size, message):
    outcome = mine(name, block_size=f"{block_size}\n")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err
    assert not (tmp_path / "outputs").exists()


def test_a_config_that_is_not_yaml_is_a_user_error_of_one_line(mine):
    outcome = mine("Mine", block_size="block_size: 8\n  n_embd: 3\n")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "mine.yaml" in outcome.err and "line 3" in outcome.err


def test_a_parameter_that_has_no_effect_is_reported(mine, caplog):
    assert mine("Unused", "trainer.max_steps=2").code == 0
    assert "the logits of Unused do not depend on unused.weight, unused.bias" in caplog.text


def test_a_model_that_sees_the_target_is_reported(mine, caplog):
    assert mine("Reversed", "trainer.max_steps=2").code == 0
    assert "the logits of Reversed depend on later tokens" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "ddp_find_unused_parameters_true"])
def test_an_unused_parameter_is_refused_with_several_processes(tmp_path, tiny, strategy):
    settings = [setting for setting in tiny if not setting.startswith("model")]
    (tmp_path / "my_conf" / "model").mkdir(parents=True)
    (tmp_path / "my_conf" / "model" / "mine.yaml").write_text(f"_target_: {HERE}.Unused\nblock_size: 8\n")
    settings += ["trainer.devices=2", f"trainer.strategy={strategy}", "recipe=default"]
    outcome = process(
        tmp_path, "train", "--config-dir=my_conf", "model=mine", *settings, timeout=400, PYTHONPATH=str(REPO)
    )
    if strategy == "auto":
        assert outcome.code == 2
        assert "model: the logits do not depend on unused.weight" in outcome.err.splitlines()[-1]
    else:
        assert outcome.code == 0, outcome.err
