"""The content and the axis labels of the plots."""

import math

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.patches import Rectangle

from chargpt.analysis.plots import CANDIDATES, TOKENS_PER_ROW, plot_attention, plot_surprisal

VOCABULARY = list("␣abcdefghij")


def ticks(axis) -> list[str]:
    return [tick.label1.get_text() for tick in axis.get_major_ticks()]


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_each_head_shows_its_weights_with_the_characters_on_both_axes(heads):
    labels = list("O␣what↵")
    maps_HTT = torch.rand(heads, 7, 7).tril().softmax(-1)
    figure = plot_attention(maps_HTT, labels, "layer 1")
    visible = [axes for axes in figure.axes if axes.get_visible() and axes.get_title().startswith("head")]
    assert len(visible) == heads
    for axes, map_TT in zip(visible, maps_HTT, strict=True):
        assert ticks(axes.xaxis) == ticks(axes.yaxis) == labels
        plotted = axes.images[0].get_array()
        past = np.tri(7, dtype=bool)
        np.testing.assert_allclose(np.ma.filled(plotted, np.nan)[past], map_TT.numpy()[past])
        assert np.ma.getmaskarray(np.ma.masked_invalid(plotted))[~past].all(), "the upper triangle is empty"


@pytest.mark.parametrize("T", [2, 3, TOKENS_PER_ROW, TOKENS_PER_ROW + 1, 2 * TOKENS_PER_ROW + 7])
def test_the_line_is_the_surprisal_and_red_boxes_mark_the_actual_characters(T):
    generator = torch.Generator().manual_seed(T)
    tokens_T = torch.randint(len(VOCABULARY), (T,), generator=generator)
    log_probabilities_TV = torch.randn(T, len(VOCABULARY), generator=generator).log_softmax(-1)
    labels = [VOCABULARY[t] for t in tokens_T]
    figure = plot_surprisal(log_probabilities_TV, tokens_T, labels, VOCABULARY, "a run")
    lines = [axes for axes in figure.axes if axes.get_ylabel() == "bits"]
    assert sum((ticks(axes.xaxis) for axes in lines), []) == labels  # noqa: RUF017
    points = [c.get_offsets() for axes in lines for c in axes.collections if isinstance(c, PathCollection)]
    bits = np.ma.filled(np.concatenate(points)[:, 1].astype(float), np.nan)
    expected = [-log_probabilities_TV[t - 1, tokens_T[t]].item() / math.log(2) for t in range(1, T)]
    np.testing.assert_allclose(bits[1:], expected, rtol=1e-5)
    assert np.isnan(bits[0]), "the first character has no prediction"
    ranks = [(log_probabilities_TV[t - 1] > log_probabilities_TV[t - 1, tokens_T[t]]).sum().item() for t in range(1, T)]
    red = [p for axes in figure.axes for p in axes.patches if isinstance(p, Rectangle) and not p.get_fill()]
    assert len(red) == sum(rank < CANDIDATES for rank in ranks)
