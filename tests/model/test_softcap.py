"""Tests of the soft cap on the logits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import UserError
from chargpt.model.softcap import SoftCap


@given(x=st.floats(-1e4, 1e4), cap=st.floats(0.5, 100))
def test_a_capped_logit_is_cap_tanh_x_over_cap(x, cap):
    capped = SoftCap(cap)(torch.tensor([[[x]]], dtype=torch.float64)).item()
    assert capped == pytest.approx(cap * math.tanh(x / cap))
    assert abs(capped) <= cap


def test_the_model_caps_its_logits(small, tokens_BT):
    plain, capped = small(), small(softcap=SoftCap(0.1))
    assert plain(tokens_BT).abs().max() > 0.2
    torch.testing.assert_close(capped(tokens_BT), 0.1 * torch.tanh(plain(tokens_BT) / 0.1))


@pytest.mark.parametrize("cap", [0, -1.0, math.nan, math.inf])
def test_a_cap_that_is_not_positive_and_finite_is_a_user_error(cap):
    with pytest.raises(UserError, match=r"model\.softcap\.cap"):
        SoftCap(cap)
