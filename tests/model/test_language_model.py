"""Tests of the base class of the models."""

import torch
from torch import nn

from chargpt.model.language_model import LanguageModel


class SharedWeights(LanguageModel):
    """A model with one matrix under two names, and frozen weights."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 4, bias=False)
        self.two = nn.Linear(3, 4)
        self.two.weight = self.one.weight
        self.frozen = nn.Linear(5, 5).requires_grad_(False)


def test_shared_parameters_count_once_and_frozen_parameters_do_not_count():
    assert SharedWeights().parameter_count() == 3 * 4 + 4


def test_tied_weight_names_map_further_names_to_the_first():
    assert SharedWeights().tied_weight_names() == {"two.weight": "one.weight"}


def test_the_device_is_that_of_the_parameters():
    assert SharedWeights().device == torch.device("cpu")
    assert SharedWeights().to("meta").device == torch.device("meta")


def test_a_model_has_no_kv_cache_by_default():
    assert SharedWeights().new_cache(1) is None
