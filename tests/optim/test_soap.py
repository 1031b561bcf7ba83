"""SOAP: Adam, but in a basis that turns with the problem."""

import copy
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chargpt.errors import UserError
from chargpt.model.language_model import LanguageModel
from chargpt.optim.soap import BatchedSOAP, full_float32, refresh, soap
from tests.conftest import REPO
from tests.training import run_artifacts


class One(LanguageModel):
    """A model of one matrix inside a block, and a vector."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(torch.zeros(3))

    def matrix_parameters(self) -> list[tuple[nn.Parameter, int]]:
        return [(self.weight, 1)]


def gradients(steps: int, shape: tuple[int, ...] = (6, 4)) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.5, 4, shape[0])[:, None] * torch.linspace(1, 3, shape[1])
    return [scales * torch.randn(shape, generator=draw) for _ in range(steps)]


def train(model: One, optimizer: torch.optim.Optimizer, steps: list[Tensor]) -> Tensor:
    for gradient in steps:
        model.weight.grad, model.bias.grad = gradient.clone(), torch.ones(3)
        optimizer.step()
    return model.weight.detach()


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(size))).Q


def test_a_turned_problem_is_trained_to_the_turned_weights():
    """What Adam, coordinate by coordinate, is not."""
    weight, u, v = torch.randn(5, 5), orthogonal(5), orthogonal(5).flip(1)
    straight, turned = One(weight), One(u @ weight @ v)
    settings = dict(lr=0.01, frequency=3, weight_decay=0.1)
    steps = gradients(12, (5, 5))  # of full rank: what lies beyond would have no basis of its own
    found = train(turned, soap(turned, **settings), [u @ g @ v for g in steps])
    expected = u @ train(straight, soap(straight, **settings), steps) @ v
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-3)
    assert (found - u @ weight @ v).abs().max() > 0.05


def test_in_the_basis_of_the_coordinates_it_is_adam_from_the_second_gradient_on():
    """Gradients with one entry a row and column keep the averages diagonal."""
    steps = [torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]) * (1 + 0.1 * k)) for k in range(6)]
    weight = torch.randn(4, 4)
    model, plain = One(weight), nn.Parameter(weight.clone())
    adam = torch.optim.Adam([plain], lr=0.01, betas=(0.9, 0.8), eps=1e-8)
    for gradient in steps[1:]:
        plain.grad = gradient
        adam.step()
    found = train(model, soap(model, lr=0.01, betas=(0.9, 0.8), weight_decay=0.0, frequency=2), steps)
    torch.testing.assert_close(found, plain.detach(), atol=1e-5, rtol=1e-4)


def test_refreshing_comes_to_the_eigenvectors_largest_first():
    basis = orthogonal(5)
    average = basis @ torch.diag(torch.tensor([1.0, 3.0, 9.0, 27.0, 81.0])) @ basis.mT
    found = orthogonal(5) @ basis  # some other basis
    for _ in range(30):
        found, order = refresh(average, found)
    in_it = found.mT @ average @ found
    torch.testing.assert_close(in_it.diagonal(), torch.tensor([81.0, 27.0, 9.0, 3.0, 1.0]), rtol=1e-4, atol=1e-3)
    assert order.tolist() == [0, 1, 2, 3, 4]


def test_it_goes_on_from_its_state_to_the_same_bits():
    weight, steps, settings = torch.randn(6, 4), gradients(9), dict(lr=0.01, frequency=2)
    whole, cut = One(weight), One(weight)
    expected = train(whole, soap(whole, **settings), steps)
    first = soap(cut, **settings)
    train(cut, first, steps[:4])
    again = soap(cut, **settings)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    assert train(cut, again, steps[4:]).equal(expected)
    assert cut.bias.equal(whole.bias)


@pytest.mark.parametrize(
    "wrong", [dict(frequency=0), dict(betas=(1.0, 0.9)), dict(shampoo_beta=2), dict(eps=0), dict(lr=-1)], ids=str
)
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        soap(One(torch.zeros(2, 2)), **{"lr": 0.01, **wrong})


def test_until_there_is_a_gradient_it_waits():
    weight, steps = torch.randn(6, 4), gradients(5)
    late, prompt = One(weight), One(weight)
    found = train(late, soap(late, lr=0.01), [torch.zeros(6, 4)] * 3 + steps)
    assert found.equal(train(prompt, soap(prompt, lr=0.01), steps))


# Precision


class Precisions(TorchFunctionMode):
    """Records the precision of float32 products in each product and decomposition."""

    def __init__(self):
        super().__init__()
        self.seen: dict[str, set[str]] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        if name in ("matmul", "__matmul__", "linalg_eigh", "linalg_qr"):
            self.seen.setdefault(name, set()).add(torch.get_float32_matmul_precision())
        return function(*args, **kwargs or {})


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("batched", [False, True])
def test_its_products_are_in_full_float32_whatever_the_run_has_set(tf32, batched):
    model = One(torch.randn(6, 4))
    optimizer = soap(model, lr=0.01, frequency=2, batched=batched)
    with Precisions() as precisions:
        train(model, optimizer, gradients(4))
    assert len(precisions.seen) == 3
    assert all(seen == {"highest"} for seen in precisions.seen.values())
    assert torch.get_float32_matmul_precision() == "high"


def test_the_precision_is_restored_after_an_exception(tf32):
    with pytest.raises(KeyError), full_float32():
        assert torch.get_float32_matmul_precision() == "highest"
        raise KeyError
    assert torch.get_float32_matmul_precision() == "high"


class Calls(TorchFunctionMode):
    """Records the names of all torch functions called."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("batched", [False, True])
def test_only_the_first_step_waits_for_the_device(batched):
    model = One(torch.randn(6, 4))
    optimizer = soap(model, lr=0.01, frequency=2, batched=batched)
    waits = {"__bool__", "tolist", "item", "__float__", "cpu", "nonzero"}
    with Calls() as first:
        train(model, optimizer, gradients(1))
    with Calls() as later:
        train(model, optimizer, gradients(4))
    assert first.names & waits
    assert not later.names & waits
    assert "linalg_qr" in later.names


# Batched


class Several(LanguageModel):
    """Matrices of three shapes, some of one shape, and one that has a gradient only from the sixth step on."""

    SHAPES = ((6, 4), (6, 4), (4, 4), (3, 7), (6, 4), (4, 4))
    LATE = 4

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.matrices = nn.ParameterList(torch.randn(shape, generator=draw) for shape in self.SHAPES)
        self.bias = nn.Parameter(torch.zeros(3))

    def matrix_parameters(self) -> list[tuple[nn.Parameter, int]]:
        return [(matrix, 1) for matrix in self.matrices]

    def take(self, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            draw = torch.Generator().manual_seed(step)
            for k, matrix in enumerate(self.matrices):
                scales = torch.linspace(1, 2, matrix.shape[0])[:, None] * torch.linspace(1, 2, matrix.shape[1])
                matrix.grad = scales * torch.randn(matrix.shape, generator=draw)
                if k == self.LATE and step < 5:
                    matrix.grad.zero_()
            self.bias.grad = torch.ones(3)
            optimizer.step()


SETTINGS = dict(lr=0.01, frequency=4, weight_decay=0.1)


@pytest.fixture(scope="module")
def one_by_one() -> tuple[Several, torch.optim.Optimizer]:
    """The model after 25 steps of the matrices one by one, and the optimizer."""
    model = Several()
    optimizer = soap(model, **SETTINGS)
    model.take(optimizer, range(25))
    return model, optimizer


def assert_as(model: Several, optimizer: torch.optim.Optimizer, expected: tuple[Several, torch.optim.Optimizer]):
    close = dict(atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.state_dict(), expected[0].state_dict(), **close)
    mine, theirs = optimizer.state_dict(), expected[1].state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    assert [list(state) for state in mine["state"].values()] == [list(s) for s in theirs["state"].values()]
    for name in ("taken", "momentum", "variance", "left", "right"):  # the bases have signs
        for number in range(len(Several.SHAPES)):
            torch.testing.assert_close(mine["state"][number][name], theirs["state"][number][name], **close)


def test_in_batches_it_takes_the_same_steps(one_by_one):
    model = Several()
    optimizer = soap(model, **SETTINGS, batched=True)
    assert isinstance(optimizer, BatchedSOAP)
    model.take(optimizer, range(25))
    assert_as(model, optimizer, one_by_one)
    taken = [optimizer.state[matrix]["taken"] for matrix in model.matrices]
    assert taken == [24, 24, 24, 24, 19, 24]


@pytest.mark.parametrize("order", [(False, True, False), (True, False, True), (True, True, True)], ids=str)
def test_either_goes_on_from_the_others_state(one_by_one, order, tmp_path: Path):
    model, file = Several(), tmp_path / "state.pt"
    for batched, steps in zip(order, (range(7), range(7, 14), range(14, 25)), strict=True):
        optimizer = soap(model, **SETTINGS, batched=batched)
        if steps.start:
            optimizer.load_state_dict(torch.load(file))
        model.take(optimizer, steps)
        torch.save(optimizer.state_dict(), file)
    assert_as(model, optimizer, one_by_one)


def test_in_batches_it_goes_on_from_its_state_to_the_same_bits(tmp_path: Path):
    whole, cut = Several(), Several()
    whole.take(soap(whole, **SETTINGS, batched=True), range(12))
    first, again = (soap(cut, **SETTINGS, batched=True) for _ in range(2))
    cut.take(first, range(6))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    cut.take(again, range(6, 12))
    assert all(p.equal(q) for p, q in zip(whole.parameters(), cut.parameters(), strict=True))


def test_a_matrix_keeps_no_more_than_its_own_memory():
    model = Several()
    optimizer = soap(model, **SETTINGS, batched=True)
    model.take(optimizer, range(9))
    kept = [t for matrix in model.matrices for t in optimizer.state[matrix].values() if isinstance(t, Tensor)]
    assert len(kept) == 6 * len(Several.SHAPES)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept)


def test_a_copy_is_batched_too():
    model = Several()
    optimizer = soap(model, **SETTINGS, batched=True)
    model.take(optimizer, range(3))
    assert isinstance(copy.deepcopy(optimizer), BatchedSOAP)


@pytest.mark.parametrize(("words", "kind"), [([], "SOAP"), (["optimizer.batched=true"], "BatchedSOAP")], ids=str)
def test_the_config_chooses(words, kind):
    with initialize_config_dir(str(REPO / "conf"), version_base=None):
        config = compose("train", ["optimizer=soap", *words])
    assert type(instantiate(config.optimizer)(Several())).__name__ == kind


@pytest.mark.parametrize("model", ["gpt_nano", "gpt_modern"])
def test_in_batches_it_trains_from_the_command_line(run_cli, tiny, tmp_path: Path, model):
    """gpt_modern's projections start at 0: some matrices start a step later than others."""
    words = [*tiny, f"model={model}", "optimizer=soap", "hydra.run.dir=run"]
    outcome = run_cli("train", *words, "optimizer.batched=true", "trainer.max_steps=20")
    assert outcome.code == 0, outcome.err
    losses = [float(row["val_loss"]) for row in run_artifacts.history(tmp_path / "run") if row["val_loss"]]
    assert losses[-1] < losses[0]
