"""What every model says of itself."""

import torch
from torch import nn

from chargpt.model.language_model import LanguageModel


class Shared(LanguageModel):
    """One matrix under two names, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 4, bias=False)
        self.two = nn.Linear(3, 4)
        self.two.weight = self.one.weight
        self.frozen = nn.Linear(5, 5).requires_grad_(False)


def test_shared_parameters_count_once_and_frozen_ones_not_at_all():
    assert Shared().parameter_count() == 3 * 4 + 4


def test_the_further_names_of_shared_parameters_are_known():
    assert Shared().tied_weight_names() == {"two.weight": "one.weight"}


def test_it_stands_where_its_parameters_stand():
    assert Shared().device == torch.device("cpu")
    assert Shared().to("meta").device == torch.device("meta")


def test_a_model_without_memory_has_no_cache():
    assert Shared().new_cache(1) is None
