"""Muon: orthogonal steps for the matrices inside the blocks, AdamW's for the rest, and exact resume."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chargpt.errors import UserError
from chargpt.model.attention import CausalSelfAttention
from chargpt.model.bigram import Bigram
from chargpt.model.feed_forward import FeedForward
from chargpt.model.initialization import torch_default
from chargpt.model.ngram_embedding import NGramEmbedding
from chargpt.model.position import Learned
from chargpt.model.transformer import Transformer
from chargpt.optim import muon as module
from chargpt.optim.adamw import adamw
from chargpt.optim.muon import POLAR_EXPRESS, SAFETY, Muon, muon, orthogonalize
from tests.training.stepping import gradients, train


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    monkeypatch.setattr(module, "has_fast_bfloat16", lambda device: False)


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    parts = dict(attention=CausalSelfAttention, position=Learned, norm=nn.LayerNorm, feed_forward=FeedForward)
    return Transformer(11, 8, 2, 3, 12, 0.0, **parts, ngram_embedding=NGramEmbedding, initialization=torch_default)


# Orthogonal


@settings(deadline=None)
@given(rows=st.integers(1, 24), columns=st.integers(1, 24), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_the_result_has_the_singular_vectors_and_singular_values_about_one(rows, columns, scale):
    matrix_OI = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 25 + columns))
    u, s, vh = torch.linalg.svd(matrix_OI.double(), full_matrices=False)
    found_OI = orthogonalize(matrix_OI[None])[0].double()
    in_its_basis = u.mT @ found_OI @ vh.mT  # diagonal, if the vectors are the same
    large = s > 3e-3 * s.norm()
    assert torch.all((in_its_basis.diagonal()[large] - 1).abs() < 0.2)
    torch.testing.assert_close(in_its_basis, in_its_basis.diagonal().diag(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("shape", [(12, 128, 128), (4, 512, 128), (4, 128, 512)])
def test_bfloat16_brings_no_singular_value_out_of_reach(shape):
    """Without the safety factor some come out at 3."""
    draw = torch.Generator().manual_seed(0)
    s = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=draw), dtype=torch.bfloat16))
    assert s.max() < 1.2
    assert s.quantile(0.1) > 0.8


@pytest.mark.parametrize("shape", [(2, 128, 512), (2, 512, 128)])
@pytest.mark.parametrize("rank", [128, 5])
def test_long_float32_matrices_come_out_as_by_the_iteration_itself(shape, rank):
    """They take a short cut by x x^T, whose singular values are the squares."""
    draw = torch.Generator().manual_seed(0)
    n, rows, columns = shape
    left, right = torch.randn(n, rows, rank, generator=draw), torch.randn(n, rank, columns, generator=draw)
    matrices_NOI = left * torch.logspace(0, -5, rank) @ right
    x = matrices_NOI.double() / (matrices_NOI.double().norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT / SAFETY**2
        x = (a * x + b * gram @ x + c * gram @ gram @ x) / SAFETY
    found_NOI = orthogonalize(matrices_NOI)
    torch.testing.assert_close(found_NOI.double(), x, atol=2e-3, rtol=0)
    assert torch.linalg.svdvals(found_NOI).max() < 1.2


def test_a_gradient_of_nothing_is_no_step():
    assert not orthogonalize(torch.zeros(2, 4, 3)).any()


# Muon


def expected_matrix(p: Tensor, grads: list[Tensor], maps: int, lr: float, momentum: float, decay: float) -> Tensor:
    """Jordan et al. 2024 ("Muon"), one map at a time, in double precision."""
    x, m = p.detach().double(), torch.zeros_like(p, dtype=torch.double)
    for grad in grads:
        g = grad.double()
        m = momentum * m + (1 - momentum) * g
        wanted, turned = (1 - momentum) * g + momentum * m, []
        for piece in wanted.chunk(maps):
            o = piece / (piece.norm() * 1.01)
            for a, b, c in POLAR_EXPRESS:
                gram = o @ o.mT / SAFETY**2
                o = (a * o + b * gram @ o + c * gram @ gram @ o) / SAFETY
            turned.append(o * max(1, o.shape[0] / o.shape[1]) ** 0.5)
        x = x * (1 - lr * decay) - lr * torch.cat(turned)
    return x


@pytest.mark.parametrize("steps", [1, 4])
def test_matrices_take_the_papers_step_and_all_else_adamws(model, steps):
    rest = dict(adamw_lr=0.01, adamw_betas=(0.7, 0.9), adamw_weight_decay=0.1, adamw_eps=1e-8)
    optimizer = muon(model, lr=0.03, momentum=0.8, weight_decay=0.2, **rest)
    twin = copy.deepcopy(model)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.01, betas=(0.7, 0.9), weight_decay=0.1, eps=1e-8)
    maps = {id(weight): maps for weight, maps in model.matrix_parameters()}
    expected = {}
    for i, (name, p) in enumerate(model.named_parameters()):
        if id(p) in maps:
            grads = [gradients(model, step)[i] for step in range(steps)]
            expected[name] = expected_matrix(p, grads, maps[id(p)], 0.03, 0.8, 0.2)
    train(model, optimizer, range(steps))
    train(twin, theirs, range(steps))
    assert len(expected) == 2 * 4
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.double(), expected.get(name, q.double()), atol=1e-4, rtol=1e-4, msg=name)


def test_every_parameter_is_in_just_one_group(model):
    groups = muon(model, lr=0.02).param_groups
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    taken = {name: g["maps"] for g in groups for name, p in model.named_parameters() for q in g["params"] if p is q}
    assert {taken[f"blocks.{i}.attention.qkv_proj.weight"] for i in range(2)} == {3}
    assert taken["blocks.0.feed_forward.up_proj.weight"] == 1
    for name in (
        "token_embedding.weight",
        "ngram_embedding.tables.0.weight",
        "head.weight",
        "blocks.0.attention_norm.weight",
    ):
        assert taken[name] == 0


def test_a_model_without_blocks_is_adamws(monkeypatch):
    table, twin = Bigram(7, 4), Bigram(7, 4)
    twin.load_state_dict(table.state_dict())
    train(table, muon(table, lr=1.0, adamw_lr=0.01, adamw_eps=1e-8), range(3))
    train(twin, adamw(twin, lr=0.01, betas=(0.8, 0.95), weight_decay=0.0), range(3))
    torch.testing.assert_close(table.state_dict(), twin.state_dict())


def test_it_goes_on_from_its_state_to_the_same_bits(model):
    optimizer, start = muon(model, lr=0.02), copy.deepcopy(model)
    train(model, optimizer, range(5))
    other = muon(start, lr=0.02)
    train(start, other, range(2))
    again = copy.deepcopy(start)
    resumed = muon(again, lr=0.02)
    resumed.load_state_dict(copy.deepcopy(other.state_dict()))
    train(again, resumed, range(2, 5))
    assert all(p.equal(q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_a_part_without_a_gradient_stays(model):
    optimizer = muon(model, lr=0.02)
    cold = [model.blocks[1].feed_forward.up_proj.weight, model.head.weight]
    before = [p.clone() for p in cold]
    for p, grad in zip(model.parameters(), gradients(model, 0), strict=True):
        p.grad = None if any(p is q for q in cold) else grad
    optimizer.step()
    assert all(p.equal(q) for p, q in zip(cold, before, strict=True))


def test_infinite_gradients_of_float16_take_no_step(model):
    optimizer, before = muon(model, lr=0.02), copy.deepcopy(model.state_dict())
    optimizer.found_inf = torch.tensor(1.0)
    train(model, optimizer, range(1))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(lr=-1),
        dict(momentum=1.0),
        dict(orthogonalization_steps=6),
        dict(adamw_betas=(0.9,)),
        dict(adamw_lr=-1),
    ],
    ids=str,
)
def test_settings_without_sense_are_refused(model, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        muon(model, **{"lr": 0.02, **wrong})


def test_orthogonalization_takes_the_type_it_is_given(monkeypatch, model):
    seen = []
    real = module.orthogonalize
    monkeypatch.setattr(module, "has_fast_bfloat16", lambda device: True)
    monkeypatch.setattr(module, "orthogonalize", lambda m, steps, dtype: seen.append(dtype) or real(m, steps, dtype))
    for choice in ("auto", "float32", "bfloat16"):
        train(model, muon(model, lr=0.02, orthogonalization_dtype=choice), [0])
    count = len(seen) // 3
    assert seen == [torch.bfloat16] * count + [torch.float32] * count + [torch.bfloat16] * count
    with pytest.raises(UserError, match="auto"):
        muon(model, lr=0.02, orthogonalization_dtype="float8")


def test_a_checkpoint_of_before_that_setting_goes_on(model):
    optimizer = muon(model, lr=0.02)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group.pop("orthogonalization_dtype", None)
    optimizer.load_state_dict(saved)
    train(model, optimizer, [0])


def test_it_is_one_optimizer_of_torchs(model):
    assert isinstance(muon(model, lr=0.02), Muon)
    assert isinstance(muon(model, lr=0.02), torch.optim.Optimizer)
