"""Tests of the feed-forward layers against their formulas."""

import pytest
import torch
from torch import nn

from chargpt.errors import UserError
from chargpt.model.feed_forward import FeedForward, LinearReLU, SquaredReLU, SwiGLU

LAYERS = [FeedForward, LinearReLU, SwiGLU]


@pytest.fixture
def x_BTC() -> torch.Tensor:
    return torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


ACTIVATIONS = {
    nn.ReLU: lambda x: torch.where(x > 0, x, 0.0),
    nn.GELU: lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    SquaredReLU: lambda x: torch.where(x > 0, x * x, 0.0),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward_is_two_linear_layers_around_its_activation(x_BTC, activation, bias):
    layer = FeedForward(12, activation=activation, bias=bias)
    W1, W2 = layer.up_proj.weight, layer.down_proj.weight
    b1, b2 = (layer.up_proj.bias, layer.down_proj.bias) if bias else (0.0, 0.0)
    assert W1.shape == (48, 12)
    assert_close(layer(x_BTC), ACTIVATIONS[activation](x_BTC @ W1.T + b1) @ W2.T + b2)


def test_the_default_activation_is_relu_as_in_the_lecture():
    assert isinstance(FeedForward(12).activation, nn.ReLU)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_relu_is_one_layer_and_a_relu(x_BTC, bias):
    layer = LinearReLU(12, bias=bias)
    b = layer.linear.bias if bias else 0.0
    assert_close(layer(x_BTC), (x_BTC @ layer.linear.weight.T + b).clamp(min=0))
    assert sum(p.numel() for p in layer.parameters()) == 12 * 12 + 12 * bias


@pytest.mark.parametrize("bias", [True, False])
def test_swiglu_is_shazeers_formula(x_BTC, bias):
    layer = SwiGLU(12, bias=bias)
    W, V, W2 = layer.gate_proj.weight, layer.up_proj.weight, layer.down_proj.weight
    b, c, b2 = (layer.gate_proj.bias, layer.up_proj.bias, layer.down_proj.bias) if bias else (0.0, 0.0, 0.0)
    gate = x_BTC @ W.T + b
    assert_close(layer(x_BTC), (gate / (1 + torch.exp(-gate)) * (x_BTC @ V.T + c)) @ W2.T + b2)


def test_swiglu_has_as_many_parameters_as_feed_forward_with_expansion_four():
    counts = [sum(p.numel() for p in layer.parameters()) for layer in (SwiGLU(384), FeedForward(384, bias=False))]
    assert counts[0] == counts[1] == 8 * 384**2


@pytest.mark.parametrize(("n_embd", "expansion", "inner"), [(12, 2.0, 24), (12, 0.5, 6), (100, 8 / 3, 267)])
def test_the_inner_width_is_rounded(n_embd, expansion, inner):
    assert FeedForward(n_embd, expansion=expansion).up_proj.out_features == inner
    assert SwiGLU(n_embd, expansion=expansion).gate_proj.out_features == inner


@pytest.mark.parametrize("layer", [FeedForward, SwiGLU])
@pytest.mark.parametrize("expansion", [0.0, 0.04, -4.0])
def test_an_expansion_to_zero_channels_is_a_user_error(layer, expansion):
    with pytest.raises(UserError, match=f"expansion={expansion}"):
        layer(12, expansion=expansion)


@pytest.mark.parametrize("layer", LAYERS)
def test_tokens_are_processed_independently(x_BTC, layer):
    layer = layer(12)
    other_BTC = x_BTC.clone()
    other_BTC[:, 1] += 1.0
    changed = (layer(x_BTC) != layer(other_BTC)).any(dim=-1)
    assert changed.tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize("layer", LAYERS)
def test_dropout_applies_to_the_output_in_training_only(layer):
    torch.manual_seed(0)
    layer = layer(64, dropout=0.25)
    x_BTC = torch.randn(8, 32, 64)
    dropped_BTC, undropped_BTC = layer(x_BTC), layer.eval()(x_BTC)
    assert undropped_BTC.equal(layer(x_BTC))
    nonzero = undropped_BTC != 0
    assert (dropped_BTC[nonzero] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    kept = dropped_BTC != 0
    assert_close(dropped_BTC[kept], undropped_BTC[kept] / 0.75)
