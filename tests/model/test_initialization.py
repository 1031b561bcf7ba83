"""Tests of the initial weights: their measured size, and the initial logits and loss."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from chargpt.errors import UserError
from chargpt.model.attention import CausalSelfAttention
from chargpt.model.block_context import BlockContext
from chargpt.model.feed_forward import LinearReLU, SwiGLU
from chargpt.model.initialization import gpt2, normal, torch_default, unit_embedding, zero_projections
from chargpt.model.loss import cross_entropy
from chargpt.model.ngram_embedding import NGramEmbedding
from chargpt.model.position import Rotary
from chargpt.model.value_residual import ValueEmbedding

SIZES = dict(vocab_size=200, block_size=100, n_layer=3, n_head=4, n_embd=64)


def rms(weight: torch.Tensor) -> float:
    return weight.square().mean().sqrt().item()


def matrices(model) -> list[nn.Parameter]:
    """The weights of linear layers and embeddings, except the projections into the residual stream."""
    projections = {id(layer.weight) for layer in model.residual_projections()}
    layers = (m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding))
    return [layer.weight for layer in layers if id(layer.weight) not in projections]


@pytest.mark.parametrize("std", [0.02, 0.1])
@pytest.mark.parametrize("initialization", [normal, gpt2, zero_projections])
def test_all_weights_but_the_projections_have_the_requested_std(small, initialization, std):
    model = small(**SIZES, initialization=partial(initialization, std=std))
    weights = matrices(model)
    assert len(weights) == 2 + 3 * 2 + 1  # two tables, qkv_proj and up_proj of each block, the head
    for weight in weights:
        assert rms(weight) == pytest.approx(std, rel=0.05)
        assert abs(weight.mean().item()) < 0.05 * std


@pytest.mark.parametrize("initialization", [normal, gpt2, zero_projections])
def test_biases_are_zero_and_norms_are_unchanged(small, initialization):
    model = small(**SIZES, initialization=initialization)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 3 * 5 + 2
    assert all((bias == 0).all() for bias in biases)
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert all((norm.weight == 1).all() for norm in norms)


def test_normal_gives_the_projections_the_same_std(small):
    model = small(**SIZES, initialization=normal)
    assert len(model.residual_projections()) == 6
    for layer in model.residual_projections():
        assert rms(layer.weight) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("n_layer", [1, 3])
def test_gpt2_scales_the_projections_by_the_root_of_twice_the_layers(small, n_layer):
    model = small(**SIZES | dict(n_layer=n_layer), initialization=gpt2)
    assert len(model.residual_projections()) == 2 * n_layer
    for layer in model.residual_projections():
        assert rms(layer.weight) == pytest.approx(0.02 / math.sqrt(2 * n_layer), rel=0.05)


def test_gpt2_scales_by_the_number_of_existing_projections(small):
    attention_only = small(**SIZES, initialization=gpt2, feed_forward=None)
    for layer in attention_only.residual_projections():
        assert rms(layer.weight) == pytest.approx(0.02 / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("initialization", [gpt2, zero_projections])
def test_blocks_without_projections_are_initialized_too(small, initialization):
    submodules = dict(attention=partial(CausalSelfAttention, projection=False), feed_forward=LinearReLU)
    model = small(**SIZES, **submodules, initialization=initialization)
    assert model.residual_projections() == []
    assert all(rms(weight) == pytest.approx(0.02, rel=0.05) for weight in matrices(model))


@pytest.mark.parametrize(
    "submodules", [{}, dict(feed_forward=SwiGLU, position=Rotary, norm=nn.RMSNorm), dict(feed_forward=None)]
)
def test_zero_projections_make_each_block_the_identity(small, submodules):
    model = small(**SIZES, **submodules, initialization=zero_projections)
    x_BTC = torch.randn(2, 5, 64)
    context = BlockContext(torch.zeros(2, 5).long(), x_BTC, model.position.rotation(torch.arange(5)))
    for block in model.blocks:
        assert block(x_BTC, context).equal(x_BTC)


def test_with_a_zero_head_the_initial_loss_is_that_of_a_uniform_prediction(small):
    model = small(**SIZES, initialization=partial(zero_projections, head=True))
    tokens_BT = torch.randint(200, (4, 20))
    assert cross_entropy(model(tokens_BT), tokens_BT).item() == pytest.approx(math.log(200), abs=1e-6)


def test_a_zero_head_with_tied_weights_is_a_user_error(small):
    with pytest.raises(UserError, match="tie_weights"):
        small(**SIZES, initialization=partial(zero_projections, head=True), tie_weights=True, bias=False)


def test_torch_default_does_not_change_the_weights(small):
    models = []
    small(**SIZES, initialization=lambda model: models.append(copy.deepcopy(model)))
    initialized = small(**SIZES, initialization=torch_default).state_dict()
    assert all(weight.equal(initialized[name]) for name, weight in models[0].state_dict().items())


@pytest.mark.parametrize("initialization", [normal, gpt2, zero_projections])
def test_a_negative_std_is_a_user_error(small, initialization):
    with pytest.raises(UserError, match=r"std=-0\.02"):
        small(**SIZES, initialization=partial(initialization, std=-0.02))


@pytest.mark.parametrize("initialization", [normal, gpt2])
def test_tied_weights_have_the_requested_std(small, initialization):
    model = small(**SIZES, initialization=initialization, tie_weights=True, bias=False)
    assert rms(model.head.weight) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("tied", [True, False])
def test_unit_embedding_has_rms_one_and_matrices_scale_with_their_fan_in(small, tied):
    model = small(**SIZES, tie_weights=tied, bias=False, initialization=unit_embedding)
    assert rms(model.token_embedding.weight) == pytest.approx(0.5 / 64**0.5 if tied else 1.0, rel=0.05)
    for block in model.blocks:
        assert rms(block.attention.qkv_proj.weight) == pytest.approx(0.5 / 64**0.5, rel=0.05)
        assert rms(block.feed_forward.up_proj.weight) == pytest.approx(0.5 / 64**0.5, rel=0.05)
    assert not any(projection.weight.any() for projection in model.residual_projections())
    assert model.head.weight.any() == tied


def test_submodules_that_initialize_themselves_are_not_changed(small):
    for initialization in (normal, unit_embedding):
        submodules = dict(ngram_embedding=NGramEmbedding, value_residual=partial(ValueEmbedding, std=0.7))
        model = small(**SIZES, **submodules, initialization=initialization)
        assert not model.ngram_embedding.tables[0].weight.any()
        assert rms(model.value_residual[0].embedding.weight) == pytest.approx(0.7, rel=0.05)
