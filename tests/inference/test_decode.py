"""Decoding one token at a time, compared to the forward pass of the model, for all components of a model."""

import pytest
import torch

from chargpt.config.instantiate import instantiate
from chargpt.errors import UserError
from chargpt.inference.context import Context
from chargpt.inference.decode import DecodeStep
from tests.inference.architectures import OPTIONS, build_model

NANO = "model=gpt_nano"
ARCHITECTURES = [
    [NANO],
    ["model=gpt_small"],
    [NANO, "model/position=rotary"],
    [NANO, "model/position=none"],
    [NANO, "model/norm=rms_norm", "model/feed_forward=swiglu"],
    [NANO, "model/norm=none", "model/feed_forward=squared_relu"],
    ["model=gpt_modern"],
    [
        "model=gpt_modern",
        "model/value_residual=residual",
        "model/unet_skips=u_net",
        "model/ngram_embedding=pairs_and_triples",
    ],
    [
        NANO,
        "model/unet_skips=u_net",
        "model/softcap=soft_cap",
        "model/attention=causal_qk_norm",
        "model/norm=rms_norm_plain",
    ],
    ["model=gpt_ensemble", "model.members=2"],
    ["lecture=head"],
    ["lecture=feed_forward"],
    ["lecture=residual"],
    ["lecture=layer_norm"],
]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("overrides", ARCHITECTURES, ids=" ".join)
def test_logits_are_equal_to_the_forward_pass(overrides, batch_size):
    model = build_model(overrides)
    assert DecodeStep.supports(model)
    tokens_BT = torch.randint(11, (batch_size, 16), generator=torch.Generator().manual_seed(1))
    cache, step = model.new_cache(batch_size), DecodeStep.create(model, batch_size)
    model(tokens_BT[:, :2], cache)
    for t in range(2, 16):
        torch.testing.assert_close(
            step(tokens_BT[:, t], cache), model(tokens_BT[:, : t + 1])[:, -1], atol=1e-4, rtol=3e-5
        )


@pytest.mark.parametrize("component", [f"model/{group}={name}" for group in OPTIONS for name in OPTIONS[group]])
def test_a_kv_cache_that_is_filled_in_chunks_does_not_change_the_logits(component):
    model = build_model([NANO, component])
    tokens_BT = torch.randint(11, (2, 16), generator=torch.Generator().manual_seed(1))
    cache = model.new_cache(2)
    logits_BTV = torch.cat([model(chunk_BT, cache) for chunk_BT in tokens_BT.split([5, 1, 7, 3], dim=1)], dim=1)
    torch.testing.assert_close(logits_BTV, model(tokens_BT), atol=1e-4, rtol=3e-5)


class HalvedLayerNorm(torch.nn.LayerNorm):
    """A norm defined by a user."""

    def forward(self, x):
        return super().forward(x) / 2


def test_a_norm_defined_by_a_user_is_called():
    model = build_model(["model=gpt_modern"])
    for block in model.blocks:
        block.attention_norm.__class__ = HalvedLayerNorm
    tokens_BT = torch.arange(8)[None] % 11
    cache, step = model.new_cache(1), DecodeStep(model, 1)
    rows = [step(tokens_BT[:, t], cache) for t in range(8)]
    torch.testing.assert_close(rows[-1], model(tokens_BT)[:, -1], atol=1e-4, rtol=3e-5)


@pytest.mark.parametrize("window", ["half", "exact"])
@pytest.mark.parametrize("overrides", [["model=bigram"], *ARCHITECTURES], ids=" ".join)
def test_a_context_beyond_two_blocks_has_the_logits_of_a_full_pass_over_its_window(overrides, window):
    model = (
        build_model(overrides)
        if overrides != ["model=bigram"]
        else instantiate({"_target_": "chargpt.model.bigram.Bigram", "block_size": 16}, "model", vocab_size=11).eval()
    )
    tokens_N = torch.randint(11, (50,), generator=torch.Generator().manual_seed(2))
    context, length = Context(model, 1, window), 0
    for end in range(3, 51):
        new_BT = tokens_N[None, 0 if end == 3 else end - 1 : end]
        length += new_BT.shape[1]
        if length > 16:
            length = 8 if window == "half" else 16
        expected_V = model(tokens_N[None, end - length : end])[0, -1]
        torch.testing.assert_close(context.extend(new_BT)[0], expected_V, atol=1e-4, rtol=3e-5)


def test_every_token_has_a_context_of_at_least_half_a_block():
    model, widths = build_model(["model=gpt_modern"]), []
    forward = model.forward
    model.forward = lambda tokens_BT, cache=None: widths.append(tokens_BT.shape[1]) or forward(tokens_BT, cache)
    context = Context(model, 1)
    context.extend(torch.zeros(1, 20, dtype=torch.long))
    for _ in range(40):
        context.extend(torch.zeros(1, 1, dtype=torch.long))
    assert widths == [16, 8, 8, 8, 8, 8]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("overrides", [["model=gpt_modern"], ["model=gpt_small"]], ids=" ".join)
def test_int8_logits_are_within_the_quantization_error(overrides, batch_size):
    model = build_model(overrides, n_embd=96)
    tokens_BT = torch.randint(11, (batch_size, 10), generator=torch.Generator().manual_seed(1))
    cache, step = model.new_cache(batch_size), DecodeStep(model, batch_size, "int8")
    for t in range(10):
        actual_BV = step(tokens_BT[:, t], cache)
    expected_BV = model(tokens_BT)[:, -1]
    spread = expected_BV.std()
    assert 0 < (actual_BV - expected_BV).abs().max() < 0.1 * spread


def test_int8_requires_channels_in_multiples_of_32():
    with pytest.raises(UserError, match="multiples of 32"):
        Context(build_model(["model=gpt_modern"]), 1, quantize="int8")


def test_a_bigram_model_cannot_be_quantized():
    model = instantiate({"_target_": "chargpt.model.bigram.Bigram"}, "model", vocab_size=11)
    with pytest.raises(UserError, match="quantize=int8"):
        Context(model, 1, quantize="int8")


def test_the_undocumented_operator_for_int8_weights_is_a_scaled_product():
    weight = torch.randint(-127, 128, (40, 64), dtype=torch.int8)
    x_BC, scale_C = torch.randn(3, 64).bfloat16(), torch.rand(40).bfloat16()
    actual_BC = torch.ops.aten._weight_int8pack_mm.default(x_BC, weight, scale_C)
    assert actual_BC.dtype == torch.bfloat16
    expected_BC = torch.nn.functional.linear(x_BC.float(), weight.float()) * scale_C.float()
    torch.testing.assert_close(actual_BC.float(), expected_BC, atol=0.1, rtol=0.02)
