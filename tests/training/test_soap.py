"""SOAP: Adam, but in a basis that turns with the problem."""

import copy

import pytest
import torch
from torch import Tensor, nn

from chargpt.errors import Mistake
from chargpt.model.language_model import LanguageModel
from chargpt.training.soap import refresh, soap


class One(LanguageModel):
    """A model of one matrix inside a block, and a vector."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(torch.zeros(3))

    def hidden_matrices(self) -> list[tuple[nn.Parameter, int]]:
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
    with pytest.raises(Mistake, match=next(iter(wrong))):
        soap(One(torch.zeros(2, 2)), **{"lr": 0.01, **wrong})


def test_until_there_is_a_gradient_it_waits():
    weight, steps = torch.randn(6, 4), gradients(5)
    late, prompt = One(weight), One(weight)
    found = train(late, soap(late, lr=0.01), [torch.zeros(6, 4)] * 3 + steps)
    assert found.equal(train(prompt, soap(prompt, lr=0.01), steps))
