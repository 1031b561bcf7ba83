"""Tests of the complete Transformer: the lecture's model, causality, KV cache, size, submodules, and user errors."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from chargpt.errors import UserError
from chargpt.model.attention import CausalSelfAttention
from chargpt.model.block_context import BlockContext
from chargpt.model.feed_forward import FeedForward, LinearReLU, SquaredReLU, SwiGLU
from chargpt.model.initialization import gpt2, normal
from chargpt.model.loss import cross_entropy
from chargpt.model.ngram_embedding import NGramEmbedding
from chargpt.model.position import Learned, PositionEncoding, Rotary
from chargpt.model.transformer import Block, Transformer
from tests.model.lecture import GPTLanguageModel

NANO = "model=gpt_nano"
POSITIONS = [Learned, Rotary, PositionEncoding]
NORMS = [nn.LayerNorm, nn.RMSNorm, nn.Identity]
FEED_FORWARDS = [FeedForward, partial(FeedForward, activation=SquaredReLU), SwiGLU, LinearReLU, None]

every_position = pytest.mark.parametrize("position", POSITIONS)
every_norm = pytest.mark.parametrize("norm", NORMS)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


# The lecture's model


@pytest.mark.parametrize("n_head", [1, 2, 6])
def test_logits_loss_and_gradients_equal_those_of_the_lectures_script(small, tokens_BT, n_head):
    model = small(n_head=n_head, n_layer=3)
    for parameter in model.parameters():  # initial zeros and ones could hide errors
        nn.init.normal_(parameter, std=0.3)
    lecture = GPTLanguageModel(model)
    targets_BT = tokens_BT.roll(-1, dims=1)
    logits_BTV = model(tokens_BT)
    loss = cross_entropy(logits_BTV, targets_BT)
    expected_BTV, expected_loss = lecture(tokens_BT, targets_BT)
    assert_close(logits_BTV, expected_BTV)
    assert_close(loss, expected_loss)
    loss.backward()
    expected_loss.backward()
    assert_close(model.token_embedding.weight.grad, lecture.token_embedding_table.weight.grad)
    assert_close(model.position.embedding.weight.grad, lecture.position_embedding_table.weight.grad)
    assert_close(model.blocks[0].feed_forward.up_proj.weight.grad, lecture.blocks[0].ffwd.net[0].weight.grad)
    for name, rows in (("query", slice(0, 12)), ("key", slice(12, 24)), ("value", slice(24, 36))):
        heads = [getattr(head, name).weight.grad for head in lecture.blocks[1].sa.heads]
        assert_close(model.blocks[1].attention.qkv_proj.weight.grad[rows], torch.cat(heads))


def test_the_gpt_small_config_builds_the_lectures_model(composed):
    model = composed("model=gpt_small", "model.n_layer=2", "model.n_head=3", "model.n_embd=24").eval()
    assert model.embedding_dropout == 0
    lecture = GPTLanguageModel(model)
    tokens_BT = torch.randint(65, (2, 256), generator=torch.Generator().manual_seed(1))
    assert_close(model(tokens_BT), lecture(tokens_BT, tokens_BT)[0])
    for name in ("token_embedding_table", "position_embedding_table", "lm_head"):
        assert getattr(lecture, name).weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_gpt_small_has_as_many_parameters_as_the_lectures_model(composed):
    assert composed("model=gpt_small").parameter_count() == 10_788_929


def test_gpt_nano_has_as_many_parameters_as_its_formula(composed):
    V, T, C, L = 65, 64, 128, 4
    block = 2 * C + 3 * C * C + C * C + 2 * 4 * C * C  # two norms, qkv_proj, out_proj, up_proj and down_proj; no biases
    assert composed("model=gpt_nano").parameter_count() == V * C + T * C + L * block + C


# Causality


@every_position
@every_norm
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("t", [0, 3, 7])
def test_gradients_from_the_future_are_exactly_zero(small, tokens_BT, position, norm, residual, t):
    model = small(position=position, norm=norm, residual=residual)
    embeddings = []
    model.token_embedding.register_forward_hook(lambda module, inputs, output: embeddings.append(output))
    logits_BTV = model(tokens_BT)
    (gradient_BTC,) = torch.autograd.grad(logits_BTV[:, t].square().sum(), embeddings)
    assert (gradient_BTC[:, t + 1 :] == 0).all()
    assert (gradient_BTC[:, : t + 1] != 0).any(dim=-1).any(dim=0).all()


@every_position
@every_norm
@pytest.mark.parametrize("t", [1, 4, 7])
def test_a_later_token_does_not_change_any_bit_of_earlier_logits(small, tokens_BT, position, norm, t):
    model = small(position=position, norm=norm)
    other_BT = tokens_BT.clone()
    other_BT[:, t] = (other_BT[:, t] + 1) % 11
    logits_BTV, changed_BTV = model(tokens_BT), model(other_BT)
    assert logits_BTV[:, :t].equal(changed_BTV[:, :t])
    assert not logits_BTV[:, t].equal(changed_BTV[:, t])


def test_sequences_of_a_batch_are_independent(small, tokens_BT):
    model = small()
    batched_BTV = model(tokens_BT)
    for b in range(3):
        assert_close(batched_BTV[b : b + 1], model(tokens_BT[b : b + 1]))


@every_position
def test_logits_of_a_prefix_equal_the_first_logits_of_the_full_text(small, tokens_BT, position):
    model = small(position=position)
    assert_close(model(tokens_BT[:, :3]), model(tokens_BT)[:, :3])


@pytest.mark.parametrize(("position", "depends"), [(Learned, True), (Rotary, True), (PositionEncoding, False)])
def test_one_layer_depends_on_the_order_only_with_positions(small, tokens_BT, position, depends):
    model = small(position=position, n_layer=1)
    reordered_BT = torch.cat((tokens_BT[:, :-1].flip(1), tokens_BT[:, -1:]), dim=1)
    difference = (model(tokens_BT)[:, -1] - model(reordered_BT)[:, -1]).abs().max().item()
    assert (difference > 1e-3) == depends
    if not depends:
        assert difference < 1e-5


# KV cache


@settings(max_examples=10, deadline=None)
@given(chunks=st.lists(st.integers(1, 8), min_size=1, max_size=8).filter(lambda chunks: sum(chunks) <= 8))
@pytest.mark.parametrize("position", POSITIONS)
def test_a_cache_filled_in_any_chunks_does_not_change_the_logits(position, chunks):
    torch.manual_seed(0)
    submodules = dict(norm=nn.LayerNorm, feed_forward=SwiGLU, initialization=gpt2, attention=CausalSelfAttention)
    model = Transformer(11, 8, 2, 3, 12, 0.0, position=position, **submodules)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    tokens_BT = torch.randint(11, (2, sum(chunks)))
    cache = model.new_cache(2)
    pieces = [model(piece_BT, cache) for piece_BT in tokens_BT.split(chunks, dim=1)]
    assert_close(torch.cat(pieces, dim=1), model(tokens_BT))


@every_position
def test_a_cache_filled_token_by_token_does_not_change_the_logits(small, tokens_BT, position):
    model = small(position=position, n_layer=3)
    cache = model.new_cache(3)
    pieces = [model(tokens_BT[:, t : t + 1], cache) for t in range(8)]
    assert_close(torch.cat(pieces, dim=1), model(tokens_BT))


def test_more_tokens_than_a_block_are_an_error(small, tokens_BT):
    model = small()
    assert model(tokens_BT).shape == (3, 8, 11)
    with pytest.raises(ValueError, match=r"9 tokens .* block of 8"):
        model(torch.cat((tokens_BT, tokens_BT[:, :1]), dim=1))


def test_more_tokens_than_the_cache_can_store_are_an_error(small, tokens_BT):
    model = small()
    cache = model.new_cache(3)
    model(tokens_BT, cache)
    with pytest.raises(ValueError, match=r"9 tokens .* block of 8"):
        model(tokens_BT[:, :1], cache)


# Size


def test_tied_weights_are_one_tensor_and_count_once(small, tokens_BT):
    tied = small(tie_weights=True, bias=False)
    untied = small(tie_weights=False, bias=False)
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.parameter_count() - tied.parameter_count() == 11 * 12
    tied(tokens_BT).sum().backward()
    with torch.no_grad():
        tied.token_embedding.weight.zero_()
    assert (tied(tokens_BT) == 0).all()


def test_tied_weights_with_a_bias_are_a_user_error(small):
    with pytest.raises(UserError, match=r"tie_weights=true requires model\.bias=false"):
        small(tie_weights=True, bias=True)


def explicit_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False):
    """Attention as two matrix products, which the FLOP counter includes."""
    wei = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if is_causal:
        wei = wei.masked_fill(torch.ones(wei.shape[-2:]).tril() == 0, float("-inf"))
    return F.dropout(F.softmax(wei, dim=-1), dropout_p) @ v


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(n_layer=3, n_head=1, block_size=5),
        dict(position=Rotary, norm=nn.RMSNorm, feed_forward=SwiGLU),
        dict(tie_weights=True, bias=False, dropout=0.1),
        dict(feed_forward=None, attention=partial(CausalSelfAttention, projection=False), residual=False),
    ],
)
def test_flops_per_token_equals_torchs_flop_counter(small, monkeypatch, changes):
    model = small(**changes)
    tokens_BT = torch.randint(11, (2, model.block_size))
    monkeypatch.setattr("chargpt.model.attention.F.scaled_dot_product_attention", explicit_attention)
    with FlopCounterMode(display=False) as counter:
        model(tokens_BT).sum().backward()
    assert model.flops_per_token() == counter.get_total_flops() / tokens_BT.numel()


# Submodules


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("feed_forward", [FeedForward, None])
def test_each_submodule_adds_to_the_stream_or_replaces_it(residual, feed_forward):
    torch.manual_seed(0)
    block = Block(12, partial(CausalSelfAttention, n_head=3), nn.LayerNorm, feed_forward, residual)
    x_BTC = torch.randn(2, 5, 12)
    output = block.attention(block.attention_norm(x_BTC))
    expected = x_BTC + output if residual else output
    if feed_forward:
        output = block.feed_forward(block.feed_forward_norm(expected))
        expected = expected + output if residual else output
    assert block(x_BTC, BlockContext(torch.zeros(2, 5).long(), x_BTC)).equal(expected)


@pytest.mark.parametrize("residual", [True, False])
def test_without_residuals_a_block_with_zero_output_removes_the_input(small, tokens_BT, residual):
    model = small(residual=residual)
    with torch.no_grad():
        for layer in model.residual_projections():
            layer.weight.zero_()
            layer.bias.zero_()
    one, two = model(tokens_BT), model((tokens_BT + 1) % 11)
    assert one.equal(two) != residual


def test_the_final_norm_is_optional(small, tokens_BT):
    with_norm, without_norm = small(), small(final_norm=False)
    assert with_norm.parameter_count() - without_norm.parameter_count() == 2 * 12
    without_norm.load_state_dict(with_norm.state_dict(), strict=False)
    head_inputs = []
    without_norm.head.register_forward_pre_hook(lambda module, inputs: head_inputs.append(inputs[0]))
    without_norm(tokens_BT)
    assert_close(with_norm(tokens_BT), with_norm.head(F.layer_norm(head_inputs[0], (12,))))


def test_the_norm_configs_equal_their_formulas(composed):
    layer_normed = composed("model=gpt_nano", "model/norm=layer_norm", "model.bias=true", "model.tie_weights=false")
    rms_normed = composed("model=gpt_nano", "model/norm=rms_norm")
    without_norm = composed("model=gpt_nano", "model/norm=none")
    x_BTC = 5 + torch.randn(2, 3, 128)
    centered = x_BTC - x_BTC.mean(dim=-1, keepdim=True)
    assert_close(
        layer_normed.final_norm(x_BTC), centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    )
    assert_close(rms_normed.final_norm(x_BTC), x_BTC / (x_BTC.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt())
    assert without_norm.final_norm(x_BTC).equal(x_BTC)
    assert without_norm.parameter_count() == rms_normed.parameter_count() - 9 * 128


class ContextBlock(Block):
    """A variant that reads the context: adds the embeddings and the mean of the earlier blocks' outputs."""

    def forward(self, x_BTC, context, cache=None):
        x_BTC, earlier = super().forward(x_BTC, context, cache), context.outputs
        mean_BTC = torch.stack(earlier).mean(dim=0) if earlier else torch.zeros_like(x_BTC)
        return x_BTC + context.embeddings_BTC + mean_BTC


def test_a_custom_block_can_read_the_embeddings_and_the_earlier_outputs(small, tokens_BT):
    model = small(block=ContextBlock, n_layer=3)
    positions_T = torch.arange(8)
    embeddings_BTC = model.token_embedding(tokens_BT) + model.position.embedding(positions_T)
    x_BTC, earlier = embeddings_BTC, []
    for block in model.blocks:
        x_BTC = Block.forward(block, x_BTC, BlockContext(tokens_BT, embeddings_BTC)) + embeddings_BTC
        if earlier:
            x_BTC = x_BTC + sum(earlier) / len(earlier)
        earlier.append(x_BTC)
    logits_BTV = model(tokens_BT)
    assert_close(logits_BTV, model.head(model.final_norm(x_BTC)))
    cache = model.new_cache(3)
    pieces = [model(piece_BT, cache) for piece_BT in tokens_BT.split([3, 1, 4], dim=1)]
    assert_close(torch.cat(pieces, dim=1), logits_BTV)
    logits_BTV.sum().backward()


def test_dropout_is_active_only_in_training(small, tokens_BT):
    model = small(dropout=0.3)
    assert not model(tokens_BT).equal(model(tokens_BT))
    model.eval()
    assert model(tokens_BT).equal(model(tokens_BT))
    assert model(tokens_BT).equal(small(dropout=0.0)(tokens_BT))


@pytest.mark.parametrize("embedding_dropout", [True, False])
def test_dropout_applies_to_the_embeddings_only_with_embedding_dropout(small, tokens_BT, embedding_dropout):
    model = small(dropout=0.3, embedding_dropout=embedding_dropout)
    block_inputs = []
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: block_inputs.append(inputs[0]))
    model(tokens_BT)
    model.eval()(tokens_BT)
    in_training, in_evaluation = block_inputs
    assert in_training.equal(in_evaluation) != embedding_dropout
    assert (in_training == 0).any() == embedding_dropout


@pytest.mark.parametrize("feed_forward", FEED_FORWARDS)
@every_position
def test_every_parameter_gets_a_gradient(small, tokens_BT, feed_forward, position):
    model = small(feed_forward=feed_forward, position=position, initialization=normal)
    cross_entropy(model(tokens_BT), tokens_BT.roll(-1, dims=1)).backward()
    without_gradient = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without_gradient == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=gpt_mini", "model.n_layer=1", "model.block_size=16"],
        [NANO, "model/position=rotary", "model/feed_forward=swiglu", "model/initialization=zero_projections"],
        [NANO, "model/position=none", "model/feed_forward=squared_relu", "model/norm=rms_norm"],
        [NANO, "model/attention=causal_no_projection", "model/feed_forward=linear_relu", "model/norm=none"],
        [NANO, "model/feed_forward=none", "model/initialization=torch_default"],
        ["model=gpt_modern", "model.n_layer=2"],
        ["model=gpt_modern", "model/value_residual=residual", "model/unet_skips=u_net", "model/softcap=soft_cap"],
    ],
    ids=" ".join,
)
def test_a_few_steps_reduce_the_loss_of_any_config(composed, overrides):
    model = composed(*overrides)
    tokens_BT = torch.randint(65, (2, 17), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = cross_entropy(model(tokens_BT[:, :-1]), tokens_BT[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


# User errors


@pytest.mark.parametrize("size", ["block_size", "n_layer", "n_head", "n_embd"])
@pytest.mark.parametrize("value", [0, -1])
def test_the_message_about_an_invalid_size_names_it_and_its_value(small, size, value):
    with pytest.raises(UserError, match=rf"model\.{size}={value}: it must be 1 or more"):
        small(**{size: value})


def test_too_many_layers_are_a_user_error(small):
    with pytest.raises(UserError, match=r"model\.n_layer=1000000000: it must be at most 10,000"):
        small(n_layer=10**9)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, float("nan")])
def test_a_dropout_out_of_range_is_a_user_error(small, dropout):
    with pytest.raises(UserError, match=rf"model\.dropout={dropout}: .*less than 1"):
        small(dropout=dropout)


def test_the_message_about_an_invalid_number_of_heads_suggests_a_width(small):
    with pytest.raises(UserError, match=r"n_head=5 does not divide model\.n_embd=12: use n_embd=10 or 15"):
        small(n_head=5)


def test_rotary_positions_require_an_even_head_size(small):
    with pytest.raises(UserError, match="head size"):
        small(n_head=4, position=Rotary)


@pytest.mark.parametrize("position", POSITIONS)
def test_token_dropout_drops_tokens_and_their_n_grams_but_not_their_positions(small, tokens_BT, position):
    model = small(position=position, ngram_embedding=NGramEmbedding, token_dropout=0.4)
    nn.init.normal_(model.ngram_embedding.tables[0].weight)
    undropped_BTC = model.eval()._embed(tokens_BT, torch.arange(8), None)
    positions_BTC = model.position.add(torch.zeros_like(undropped_BTC), torch.arange(8))
    fraction = 0
    for _ in range(200):
        embedded_BTC = model.train()._embed(tokens_BT, torch.arange(8), None)
        dropped_BT = torch.isclose(embedded_BTC, positions_BTC).all(-1)
        kept_BTC = positions_BTC + (undropped_BTC - positions_BTC) / 0.6
        torch.testing.assert_close(embedded_BTC[~dropped_BT], kept_BTC[~dropped_BT], rtol=1e-3, atol=1e-4)
        fraction += dropped_BT.float().mean().item() / 200
    assert abs(fraction - 0.4) < 0.05


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_a_token_dropout_out_of_range_is_a_user_error(small, p):
    with pytest.raises(UserError, match="token_dropout"):
        small(token_dropout=p)
