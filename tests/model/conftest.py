"""Fixtures for the tests of the models: a small Transformer, and the models of the configs."""

from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from chargpt.config.instantiate import instantiate
from chargpt.model.attention import CausalSelfAttention
from chargpt.model.feed_forward import FeedForward
from chargpt.model.initialization import torch_default
from chargpt.model.language_model import LanguageModel
from chargpt.model.position import Learned
from chargpt.model.transformer import Transformer

CONF = Path(__file__).parents[2] / "conf"
SMALL = dict(
    vocab_size=11,
    block_size=8,
    n_layer=2,
    n_head=3,
    n_embd=12,
    dropout=0.0,
    attention=CausalSelfAttention,
    position=Learned,
    norm=nn.LayerNorm,
    feed_forward=FeedForward,
    initialization=torch_default,
)


@pytest.fixture
def small() -> Callable[..., Transformer]:
    """`small(n_layer=3)`: a small Transformer with the lecture's submodules and the given changes."""

    def make(**changes) -> Transformer:
        torch.manual_seed(0)
        return Transformer(**SMALL | changes)

    return make


@pytest.fixture(scope="session")
def composed() -> Callable[..., LanguageModel]:
    """`composed("model=gpt_nano", ...)`: the model that `train.py` trains on Tiny Shakespeare."""

    def make(*overrides: str) -> LanguageModel:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("train", list(overrides))
        torch.manual_seed(0)
        return instantiate(OmegaConf.to_container(config.model, resolve=True), "model", vocab_size=65)

    return make


@pytest.fixture
def tokens_BT() -> torch.Tensor:
    """Three full blocks of tokens for the small Transformer."""
    return torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(1))
