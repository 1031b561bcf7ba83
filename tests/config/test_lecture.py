"""The lecture's rungs: the recipe each pins, the parameters it has, and just the parts that its name says."""

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

RUNGS = ["bigram", "head", "multi_head", "feed_forward", "residual", "layer_norm", "scaled_up"]
SMALL = RUNGS[:-1]
VOCABULARY = 65


@pytest.fixture
def rung(compose):
    """`rung("head")`: its config and its model, on the lecture's 65 characters."""

    def rung(name: str):
        config = compose(f"+lecture={name}")
        return config, instantiate(config.model, "model", vocab_size=VOCABULARY)

    return rung


def parts(model: nn.Module, kind: type) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_the_ladder_has_the_lectures_rungs_and_one_for_a_laptop():
    assert {file.stem for file in (CONF / "lecture").iterdir()} == {*RUNGS, "scaled_up_cpu"}


@pytest.mark.parametrize(
    ("name", "steps", "batch", "block", "lr"),
    [
        ("bigram", 5000, 32, 8, 1e-2),
        *((name, 5000, 32, 8, 1e-3) for name in SMALL[1:]),
        ("scaled_up", 5000, 64, 256, 3e-4),
    ],
)
def test_the_recipe_is_the_lectures(compose, name, steps, batch, block, lr):
    config = compose(f"+lecture={name}")
    assert config.trainer.max_steps == steps
    assert (config.data.batch_size, config.data.block_size, config.data.train_fraction) == (batch, block, 0.9)
    assert config.optimizer._target_ == "chargpt.optim.adamw.adamw"
    # torch's own defaults, as in the lecture's torch.optim.AdamW(model.parameters(), lr=...)
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
def test_it_has_the_lectures_parameters(rung, name, parameters):
    assert sum(p.numel() for p in rung(name)[1].parameters()) == parameters


@pytest.mark.parametrize("name", RUNGS)
def test_it_has_just_the_parts_that_its_name_says(rung, name):
    config, model = rung(name)
    height = RUNGS.index(name)
    assert isinstance(model, Bigram if name == "bigram" else Transformer)
    attentions = parts(model, CausalSelfAttention)
    layers = {"bigram": 0, "residual": 3, "layer_norm": 3, "scaled_up": 6}.get(name, 1)
    assert len(attentions) == layers
    heads = {"head": 1, "scaled_up": 6}.get(name, 4)
    assert [a.n_head for a in attentions] == [heads] * layers
    residual = height >= RUNGS.index("residual")
    assert all((a.out_proj is not None) == residual for a in attentions)
    assert [block.residual for block in getattr(model, "blocks", [])] == [residual] * layers
    assert len(parts(model, LinearReLU)) == (name == "feed_forward")
    inner = parts(model, FeedForward)
    assert len(inner) == (layers if residual else 0)
    assert all(isinstance(f.activation, nn.ReLU) for f in inner)
    assert all(f.up_proj.out_features == 4 * f.up_proj.in_features for f in inner)
    norms = 2 * layers + 1 if height >= RUNGS.index("layer_norm") else 0
    assert len(parts(model, nn.LayerNorm)) == norms
    assert config.model.get("dropout", 0) == (0.2 if name == "scaled_up" else 0)


@pytest.mark.parametrize("name", SMALL)
def test_its_weights_start_as_torch_makes_them(rung, name):
    _, model = rung(name)
    table = model.table if name == "bigram" else model.token_embedding
    assert table.weight.std().item() == pytest.approx(1, abs=0.1)
    for linear in parts(model, nn.Linear):  # uniform within 1/sqrt(fan in)
        assert linear.weight.abs().max().item() == pytest.approx(linear.in_features**-0.5, rel=0.1)


def test_the_last_rung_is_the_scaled_up_model_with_its_own_recipe(compose):
    one, other = compose("+lecture=scaled_up"), compose("model=gpt_small")
    for key in ("model", "data", "optimizer", "schedule"):
        assert one[key] == other[key]
    assert one.trainer.accelerator == "gpu"
    assert compose("+lecture=scaled_up_cpu").trainer.accelerator == "cpu"


@pytest.mark.parametrize("name", [*RUNGS, "scaled_up_cpu"])
def test_its_file_says_its_difference_in_a_few_lines(name):
    content = (CONF / "lecture" / f"{name}.yaml").read_text()
    assert len(content.splitlines()) < 15
    opening, *_ = re.split(r"^\w", content, maxsplit=1, flags=re.MULTILINE)
    assert len(re.findall(r"^# \w.*", opening, re.MULTILINE)) >= 1, "it opens with why"
    below = re.findall(r"^  - (\w+)$", content, re.MULTILINE)
    before = {rung: [previous] for previous, rung in itertools.pairwise(RUNGS)}
    assert below == before.get(name, ["scaled_up"] if name == "scaled_up_cpu" else [])


def test_the_command_line_wins_over_a_rung(compose):
    config = compose("+lecture=residual", "optimizer.lr=1e-4", "model.n_layer=5", "model/norm=rms_norm")
    assert (config.optimizer.lr, config.model.n_layer) == (1e-4, 5)
    assert config.model.norm._target_ == "torch.nn.RMSNorm"
