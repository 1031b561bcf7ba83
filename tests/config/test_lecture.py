"""The models of the lecture: recipes, numbers of parameters, and components."""

import itertools
import re

import pytest
from torch import nn

from chargpt.config.instantiate import instantiate
from chargpt.model.attention import CausalSelfAttention
from chargpt.model.bigram import Bigram
from chargpt.model.feed_forward import FeedForward, LinearReLU
from chargpt.model.transformer import Transformer
from tests.config.conftest import CONF

LECTURE = ["bigram", "head", "multi_head", "feed_forward", "residual", "layer_norm", "scaled_up"]
SMALL = LECTURE[:-1]
VOCABULARY = 65


@pytest.fixture
def build(compose):
    """`build("head")`: the config and the model, with the lecture's 65 characters."""

    def build(name: str):
        config = compose(f"lecture={name}")
        return config, instantiate(config.model, "model", vocab_size=VOCABULARY)

    return build


def submodules(model: nn.Module, kind: type) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_the_group_has_the_models_of_the_lecture_and_one_for_a_laptop():
    assert {file.stem for file in (CONF / "lecture").iterdir()} == {*LECTURE, "scaled_up_cpu"}


@pytest.mark.parametrize(
    ("name", "steps", "batch", "block", "lr"),
    [
        ("bigram", 5000, 32, 8, 1e-2),
        *((name, 5000, 32, 8, 1e-3) for name in SMALL[1:]),
        ("scaled_up", 5000, 64, 256, 3e-4),
    ],
)
def test_each_model_has_the_recipe_of_the_lecture(compose, name, steps, batch, block, lr):
    config = compose(f"lecture={name}")
    assert config.trainer.max_steps == steps
    assert (config.data.batch_size, config.data.block_size, config.data.train_fraction) == (batch, block, 0.9)
    assert config.optimizer._target_ == "chargpt.optim.adamw.adamw"
    # PyTorch's defaults, as in the lecture's torch.optim.AdamW(model.parameters(), lr=...)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.eps) == (lr, 0.01, 1e-8)
    assert config.optimizer.betas == [0.9, 0.999]
    assert config.schedule == {"_target_": "chargpt.optim.lr_schedule.Constant", "warmup_steps": 0}
    assert config.trainer.gradient_clip_val is None
    assert config.trainer.accumulate_grad_batches == 1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bigram", 65 * 65),
        ("head", 65 * 32 + 8 * 32 + 3 * 32 * 32 + 32 * 65 + 65),
        ("multi_head", 7553),
        ("feed_forward", 7553 + 32 * 32 + 32),
        ("residual", 4481 + 3 * (4 * 32 * 32 + 32 + 32 * 128 + 128 + 128 * 32 + 32)),
        ("layer_norm", 41921 + 3 * 2 * 64 + 64),
        ("scaled_up", 10_788_929),  # what the lecture's gpt.py prints: 10.788929 M
    ],
)
def test_each_model_has_as_many_parameters_as_in_the_lecture(build, name, parameters):
    assert sum(p.numel() for p in build(name)[1].parameters()) == parameters


@pytest.mark.parametrize("name", LECTURE)
def test_each_model_has_the_components_of_its_lecture_step(build, name):
    config, model = build(name)
    step = LECTURE.index(name)
    assert isinstance(model, Bigram if name == "bigram" else Transformer)
    attentions = submodules(model, CausalSelfAttention)
    layers = {"bigram": 0, "residual": 3, "layer_norm": 3, "scaled_up": 6}.get(name, 1)
    assert len(attentions) == layers
    heads = {"head": 1, "scaled_up": 6}.get(name, 4)
    assert [a.n_head for a in attentions] == [heads] * layers
    residual = step >= LECTURE.index("residual")
    assert all((a.out_proj is not None) == residual for a in attentions)
    assert [block.residual for block in getattr(model, "blocks", [])] == [residual] * layers
    assert len(submodules(model, LinearReLU)) == (name == "feed_forward")
    feed_forwards = submodules(model, FeedForward)
    assert len(feed_forwards) == (layers if residual else 0)
    assert all(isinstance(f.activation, nn.ReLU) for f in feed_forwards)
    assert all(f.up_proj.out_features == 4 * f.up_proj.in_features for f in feed_forwards)
    norms = 2 * layers + 1 if step >= LECTURE.index("layer_norm") else 0
    assert len(submodules(model, nn.LayerNorm)) == norms
    assert config.model.get("dropout", 0) == (0.2 if name == "scaled_up" else 0)


@pytest.mark.parametrize("name", SMALL)
def test_each_model_has_pytorchs_default_initialization(build, name):
    _, model = build(name)
    table = model.table if name == "bigram" else model.token_embedding
    assert table.weight.std().item() == pytest.approx(1, abs=0.1)
    for linear in submodules(model, nn.Linear):  # uniform within 1/sqrt(fan_in)
        assert linear.weight.abs().max().item() == pytest.approx(linear.in_features**-0.5, rel=0.1)


def test_scaled_up_is_gpt_small_with_its_recipe(compose):
    scaled_up, gpt_small = compose("lecture=scaled_up"), compose("model=gpt_small")
    for key in ("model", "data", "optimizer", "schedule"):
        assert scaled_up[key] == gpt_small[key]
    assert scaled_up.trainer.accelerator == "gpu"
    assert compose("lecture=scaled_up_cpu").trainer.accelerator == "cpu"


@pytest.mark.parametrize("name", [*LECTURE, "scaled_up_cpu"])
def test_each_config_is_a_short_difference_to_the_previous_one(name):
    content = (CONF / "lecture" / f"{name}.yaml").read_text()
    assert len(content.splitlines()) < 15
    header, *_ = re.split(r"^\w", content, maxsplit=1, flags=re.MULTILINE)
    assert len(re.findall(r"^# \w.*", header, re.MULTILINE)) >= 1, "it starts with a comment"
    bases = re.findall(r"^  - (\w+)$", content, re.MULTILINE)
    previous = {name: [base] for base, name in itertools.pairwise(LECTURE)}
    assert bases == previous.get(name, ["scaled_up"] if name == "scaled_up_cpu" else [])


def test_the_command_line_overrides_a_lecture_config(compose):
    config = compose("lecture=residual", "optimizer.lr=1e-4", "model.n_layer=5", "model/norm=rms_norm")
    assert (config.optimizer.lr, config.model.n_layer) == (1e-4, 5)
    assert config.model.norm._target_ == "torch.nn.RMSNorm"
