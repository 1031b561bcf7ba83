"""The rule for embedding tables of the optimizers with a special rule for matrices."""

import copy

import pytest
import torch
from torch import nn

from chargpt.errors import UserError
from chargpt.model.ensemble import Ensemble
from chargpt.model.language_model import LanguageModel
from chargpt.optim.muon import muon
from chargpt.optim.soap import soap
from tests.inference.architectures import build_model

MODERN = ["model=gpt_modern", "model.ngram_embedding.buckets=50", "model.ngram_embedding.dropout=0.5"]


def trainable(overrides: list[str]) -> LanguageModel:
    return build_model(overrides).requires_grad_().train()


@pytest.fixture
def model() -> LanguageModel:
    return trainable(MODERN)


def backward(model: nn.Module, step: int, sparse: bool) -> None:
    """The gradients of a batch; the same ones for each step, whether they are sparse or not."""
    for table in model.embedding_tables():
        table.sparse = sparse
    torch.manual_seed(step)
    tokens_BT = torch.randint(model.vocab_size, (2, 5))
    model.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(model(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()


def randomize(model: nn.Module) -> None:
    """Makes all gradients different from 0: the initial head and tables are 0."""
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)


@pytest.mark.parametrize("optimizer", [muon, soap])
def test_tables_are_updated_as_by_sparse_adam(model, optimizer):
    randomize(model)
    tables = [table.weight for table in model.embedding_tables()]
    reference = [nn.Parameter(table.detach().clone()) for table in tables]
    expected = torch.optim.SparseAdam(reference, lr=0.03, betas=(0.8, 0.95), eps=1e-10)
    actual = optimizer(model, lr=0.01, adamw_lr=0.01, table_lr=0.03)
    for step in range(6):
        backward(model, step, sparse=True)
        for copied, table in zip(reference, tables, strict=True):
            copied.grad = table.grad.clone()
        # Unlike here, in SparseAdam the moments of a row with a gradient of 0 decay.
        for copied in reference:
            used = copied.grad.coalesce().values().ne(0).any(1)
            indices, values = copied.grad.coalesce().indices()[:, used], copied.grad.coalesce().values()[used]
            copied.grad = torch.sparse_coo_tensor(indices, values, copied.shape, check_invariants=True)
        expected.step()
        actual.step()
    for copied, table in zip(reference, tables, strict=True):
        torch.testing.assert_close(table, copied, atol=1e-5, rtol=1e-5)


def test_dense_and_sparse_gradients_give_the_same_weights(model):
    randomize(model)
    other = copy.deepcopy(model)
    optimizers = [muon(each, lr=0.01, table_lr=0.03, adamw_weight_decay=0.1) for each in (model, other)]
    for step in range(4):
        for each, optimizer, sparse in zip((model, other), optimizers, (False, True), strict=True):
            backward(each, step, sparse)
            assert all(table.weight.grad.is_sparse == sparse for table in each.embedding_tables())
            optimizer.step()
    for (name, p), (_, q) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-5, msg=name)


def test_only_rows_with_a_gradient_are_changed_and_only_their_moments(model):
    randomize(model)
    optimizer = muon(model, lr=0.01, table_lr=0.03)
    for step in range(3):
        backward(model, step, sparse=step % 2 == 0)
        tables = [table.weight for table in model.embedding_tables()]
        used = [table.grad.to_dense().ne(0).any(dim=1) for table in tables]
        states = [{name: value.clone() for name, value in optimizer.state[table].items()} for table in tables]
        before = [table.detach().clone() for table in tables]
        optimizer.step()
        for table, rows, old, state in zip(tables, used, before, states, strict=True):
            assert 0 < rows.sum() < len(rows)
            assert torch.equal((table != old).any(dim=1), rows)
            for name in state.keys() - {"step"}:
                assert torch.equal(optimizer.state[table][name][~rows], state[name][~rows])


@pytest.mark.parametrize("overrides", [MODERN, ["model=gpt_ensemble", "model.members=2"], ["model=gpt_nano"]])
@pytest.mark.parametrize("table_lr", [None, 0.03])
def test_every_parameter_is_in_one_group(overrides, table_lr):
    model = trainable(overrides)
    optimizer = muon(model, lr=0.01, adamw_lr=0.02, table_lr=table_lr)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(model.parameters())
    lazy = {p: group["lr"] for group in optimizer.param_groups if group.get("lazy") for p in group["params"]}
    expected = [] if table_lr is None else [table.weight for table in model.embedding_tables()]
    assert lazy == dict.fromkeys(expected, table_lr)


def test_an_ensemble_has_the_tables_of_its_members():
    model = build_model(["model=gpt_ensemble", "model.members=2"])
    assert isinstance(model, Ensemble)
    assert len(model.embedding_tables()) == 2 * len(model.members[0].embedding_tables()) == 8


def test_a_restored_optimizer_continues_exactly(model):
    randomize(model)
    optimizer = muon(model, lr=0.01, table_lr=0.03)
    for step in range(3):
        backward(model, step, sparse=True)
        optimizer.step()
    other = copy.deepcopy(model)
    restored = muon(other, lr=0.01, table_lr=0.03)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, of_each in ((model, optimizer), (other, restored)):
        backward(each, 3, sparse=True)
        of_each.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("table_lr", [-0.1, float("nan"), float("inf")])
def test_an_invalid_learning_rate_is_refused(model, table_lr):
    with pytest.raises(UserError, match=r"optimizer\.table_lr"):
        muon(model, lr=0.01, table_lr=table_lr)


def test_a_table_that_is_listed_twice_or_among_the_matrices_is_in_the_group_of_tables(model, monkeypatch):
    tables = model.embedding_tables()
    matrices = [*model.matrix_parameters(), (tables[0].weight, 1)]
    monkeypatch.setattr(model, "embedding_tables", lambda: [*tables, tables[0]])
    monkeypatch.setattr(model, "matrix_parameters", lambda: matrices)
    groups = muon(model, lr=0.01, table_lr=0.03).param_groups
    assert [group["params"] for group in groups if group.get("lazy")] == [[table.weight for table in tables]]
