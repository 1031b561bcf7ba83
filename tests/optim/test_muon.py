"""Tests of Muon: orthogonal updates of the blocks' matrices, AdamW for the rest, and exact resuming."""

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
def float32_iteration(monkeypatch):
    monkeypatch.setattr(module, "has_fast_bfloat16", lambda device: False)


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    submodules = dict(attention=CausalSelfAttention, position=Learned, norm=nn.LayerNorm, feed_forward=FeedForward)
    return Transformer(11, 8, 2, 3, 12, 0.0, **submodules, ngram_embedding=NGramEmbedding, initialization=torch_default)


# Orthogonalization


@settings(deadline=None)
@given(rows=st.integers(1, 24), columns=st.integers(1, 24), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_orthogonalization_keeps_singular_vectors_and_makes_singular_values_about_one(rows, columns, scale):
    matrix_OI = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 25 + columns))
    u, s, vh = torch.linalg.svd(matrix_OI.double(), full_matrices=False)
    result_OI = orthogonalize(matrix_OI[None])[0].double()
    in_basis = u.mT @ result_OI @ vh.mT  # diagonal if the singular vectors are the same
    large = s > 3e-3 * s.norm()
    assert torch.all((in_basis.diagonal()[large] - 1).abs() < 0.2)
    torch.testing.assert_close(in_basis, in_basis.diagonal().diag(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("shape", [(12, 128, 128), (4, 512, 128), (4, 128, 512)])
def test_singular_values_stay_near_one_in_bfloat16(shape):
    """Without the safety factor, some of them would be 3."""
    draw = torch.Generator().manual_seed(0)
    s = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=draw), dtype=torch.bfloat16))
    assert s.max() < 1.2
    assert s.quantile(0.1) > 0.8


@pytest.mark.parametrize("shape", [(2, 128, 512), (2, 512, 128)])
@pytest.mark.parametrize("rank", [128, 5])
def test_the_shortcut_for_long_float32_matrices_equals_the_iteration(shape, rank):
    """The shortcut uses x x^T, whose singular values are squared."""
    draw = torch.Generator().manual_seed(0)
    n, rows, columns = shape
    left, right = torch.randn(n, rows, rank, generator=draw), torch.randn(n, rank, columns, generator=draw)
    matrices_NOI = left * torch.logspace(0, -5, rank) @ right
    x = matrices_NOI.double() / (matrices_NOI.double().norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT / SAFETY**2
        x = (a * x + b * gram @ x + c * gram @ gram @ x) / SAFETY
    result_NOI = orthogonalize(matrices_NOI)
    torch.testing.assert_close(result_NOI.double(), x, atol=2e-3, rtol=0)
    assert torch.linalg.svdvals(result_NOI).max() < 1.2


def test_a_zero_gradient_gives_a_zero_update():
    assert not orthogonalize(torch.zeros(2, 4, 3)).any()


# Muon


def expected_matrix(p: Tensor, grads: list[Tensor], maps: int, lr: float, momentum: float, decay: float) -> Tensor:
    """Jordan et al. 2024 ("Muon"), one map at a time, in double precision."""
    x, m = p.detach().double(), torch.zeros_like(p, dtype=torch.double)
    for grad in grads:
        g = grad.double()
        m = momentum * m + (1 - momentum) * g
        nesterov, updates = (1 - momentum) * g + momentum * m, []
        for linear_map in nesterov.chunk(maps):
            o = linear_map / (linear_map.norm() * 1.01)
            for a, b, c in POLAR_EXPRESS:
                gram = o @ o.mT / SAFETY**2
                o = (a * o + b * gram @ o + c * gram @ gram @ o) / SAFETY
            updates.append(o * max(1, o.shape[0] / o.shape[1]) ** 0.5)
        x = x * (1 - lr * decay) - lr * torch.cat(updates)
    return x


@pytest.mark.parametrize("steps", [1, 4])
def test_matrices_are_updated_as_in_the_paper_and_the_rest_by_adamw(model, steps):
    rest = dict(adamw_lr=0.01, adamw_betas=(0.7, 0.9), adamw_weight_decay=0.1, adamw_eps=1e-8)
    optimizer = muon(model, lr=0.03, momentum=0.8, weight_decay=0.2, **rest)
    twin = copy.deepcopy(model)
    reference = torch.optim.AdamW(twin.parameters(), lr=0.01, betas=(0.7, 0.9), weight_decay=0.1, eps=1e-8)
    maps = {id(weight): maps for weight, maps in model.matrix_parameters()}
    expected = {}
    for i, (name, p) in enumerate(model.named_parameters()):
        if id(p) in maps:
            grads = [gradients(model, step)[i] for step in range(steps)]
            expected[name] = expected_matrix(p, grads, maps[id(p)], 0.03, 0.8, 0.2)
    train(model, optimizer, range(steps))
    train(twin, reference, range(steps))
    assert len(expected) == 2 * 4
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.double(), expected.get(name, q.double()), atol=1e-4, rtol=1e-4, msg=name)


def test_every_parameter_is_in_exactly_one_group(model):
    groups = muon(model, lr=0.02).param_groups
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    maps = {name: g["maps"] for g in groups for name, p in model.named_parameters() for q in g["params"] if p is q}
    assert {maps[f"blocks.{i}.attention.qkv_proj.weight"] for i in range(2)} == {3}
    assert maps["blocks.0.feed_forward.up_proj.weight"] == 1
    for name in (
        "token_embedding.weight",
        "ngram_embedding.tables.0.weight",
        "head.weight",
        "blocks.0.attention_norm.weight",
    ):
        assert maps[name] == 0


def test_a_model_without_blocks_is_trained_by_adamw():
    table, twin = Bigram(7, 4), Bigram(7, 4)
    twin.load_state_dict(table.state_dict())
    train(table, muon(table, lr=1.0, adamw_lr=0.01, adamw_eps=1e-8), range(3))
    train(twin, adamw(twin, lr=0.01, betas=(0.8, 0.95), weight_decay=0.0), range(3))
    torch.testing.assert_close(table.state_dict(), twin.state_dict())


def test_muon_resumes_from_its_state_bit_for_bit(model):
    optimizer, interrupted = muon(model, lr=0.02), copy.deepcopy(model)
    train(model, optimizer, range(5))
    first = muon(interrupted, lr=0.02)
    train(interrupted, first, range(2))
    resumed = copy.deepcopy(interrupted)
    second = muon(resumed, lr=0.02)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(resumed, second, range(2, 5))
    assert all(p.equal(q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


def test_parameters_without_a_gradient_are_unchanged(model):
    optimizer = muon(model, lr=0.02)
    without_gradient = [model.blocks[1].feed_forward.up_proj.weight, model.head.weight]
    initial = [p.clone() for p in without_gradient]
    for p, grad in zip(model.parameters(), gradients(model, 0), strict=True):
        p.grad = None if any(p is q for q in without_gradient) else grad
    optimizer.step()
    assert all(p.equal(q) for p, q in zip(without_gradient, initial, strict=True))


def test_infinite_gradients_in_float16_skip_the_step(model):
    optimizer, initial = muon(model, lr=0.02), copy.deepcopy(model.state_dict())
    optimizer.found_inf = torch.tensor(1.0)
    train(model, optimizer, range(1))
    torch.testing.assert_close(model.state_dict(), initial, rtol=0, atol=0)


@pytest.mark.parametrize(
    "invalid",
    [
        dict(lr=-1),
        dict(momentum=1.0),
        dict(orthogonalization_steps=6),
        dict(adamw_betas=(0.9,)),
        dict(adamw_lr=-1),
    ],
    ids=str,
)
def test_invalid_settings_are_a_user_error(model, invalid):
    with pytest.raises(UserError, match=next(iter(invalid))):
        muon(model, **{"lr": 0.02, **invalid})


def test_the_orthogonalization_dtype_is_used(monkeypatch, model):
    dtypes = []
    real = module.orthogonalize
    monkeypatch.setattr(module, "has_fast_bfloat16", lambda device: True)
    monkeypatch.setattr(module, "orthogonalize", lambda m, steps, dtype: dtypes.append(dtype) or real(m, steps, dtype))
    for setting in ("auto", "float32", "bfloat16"):
        train(model, muon(model, lr=0.02, orthogonalization_dtype=setting), [0])
    count = len(dtypes) // 3
    assert dtypes == [torch.bfloat16] * count + [torch.float32] * count + [torch.bfloat16] * count
    with pytest.raises(UserError, match="auto"):
        muon(model, lr=0.02, orthogonalization_dtype="float8")


def test_an_older_checkpoint_without_the_orthogonalization_dtype_is_resumed(model):
    optimizer = muon(model, lr=0.02)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group.pop("orthogonalization_dtype", None)
    optimizer.load_state_dict(saved)
    train(model, optimizer, [0])


def test_muon_is_a_torch_optimizer(model):
    assert isinstance(muon(model, lr=0.02), Muon)
    assert isinstance(muon(model, lr=0.02), torch.optim.Optimizer)
