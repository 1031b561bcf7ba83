"""Fixtures: small untrained models to sample from."""

import pytest
import torch

from chargpt.config.instantiate import instantiate
from chargpt.model.bigram import Bigram

COMPONENTS = {
    "attention": "chargpt.model.attention.CausalSelfAttention",
    "norm": "torch.nn.LayerNorm",
    "feed_forward": "chargpt.model.feed_forward.FeedForward",
}


def build_small_model(position: str):
    torch.manual_seed(0)
    if position == "bigram":
        return Bigram(vocab_size=11, block_size=8).eval()
    components = {name: {"_target_": target, "_partial_": True} for name, target in COMPONENTS.items()}
    components["position"] = {"_target_": f"chargpt.model.position.{position}", "_partial_": True}
    components["initialization"] = {"_target_": "chargpt.model.initialization.normal", "_partial_": True, "std": 0.3}
    sizes = dict(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.3)
    return instantiate({"_target_": "chargpt.model.transformer.Transformer", **sizes, **components}).eval()


@pytest.fixture(params=["bigram", "Learned", "Rotary", "PositionEncoding"])
def model(request: pytest.FixtureRequest):
    return build_small_model(request.param)
