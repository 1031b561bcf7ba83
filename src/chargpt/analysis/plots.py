"""Plots attention maps by layer and head, and predictions along a text."""

from math import ceil, log
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from chargpt.analysis.fonts import font_families

CELL_INCHES = 0.15  # width of a character: readable without zooming in
TOKENS_PER_ROW = 64  # tokens in one row of text
CANDIDATES = 6  # most likely tokens shown at each position
MAX_BITS = 8.0  # upper end of the surprisal scale
DPI = 100


def plot_attention(maps_HTT: Float[Tensor, "H T T"], labels: list[str], title: str) -> Figure:
    """Plots the attention maps of the heads of one layer side by side, with the characters on both axes."""
    heads, T = len(maps_HTT), len(labels)
    columns = min(heads, max(1, ceil(heads**0.5)))
    rows = ceil(heads / columns)
    side = max(T * CELL_INCHES, 2.0) + 0.7
    figure = Figure(figsize=(columns * side + 0.9, rows * (side + 0.2) + 0.5), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    for head, axes in enumerate(grid.flat):
        if head >= heads:
            axes.set_visible(False)
            continue
        past_TT = np.where(np.tri(T, dtype=bool), maps_HTT[head].numpy(), np.nan)  # the upper triangle stays white
        axes.imshow(past_TT, cmap="magma_r", norm=norm, interpolation="nearest")
        axes.set_title(f"head {head + 1}", fontsize=9)
        axes.set_xticks(range(T), labels, **_font())
        axes.set_yticks(range(T), labels, **_font())
        axes.tick_params(length=0, pad=2, top=True, labeltop=True)
        axes.set_xlabel("key character", fontsize=8)
        axes.set_ylabel("query character", fontsize=8)
    bar = figure.colorbar(ScalarMappable(norm, "magma_r"), ax=grid, fraction=0.02, pad=0.01)
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_surprisal(
    log_probabilities_TV: Float[Tensor, "T V"],
    tokens_T: Integer[Tensor, " T"],
    labels: list[str],
    vocabulary: list[str],
    title: str,
) -> Figure:
    """Plots the surprisal of each character in bits as a colored line, and below it the most likely predictions.

    Args:
        log_probabilities_TV: row t is the prediction for token t + 1, in nats; the last row is not plotted.
        labels: labels of the tokens of the text.
        vocabulary: labels of all tokens of the vocabulary.
    """
    T = len(labels)
    bits_T = np.full(T, np.nan)  # the first token has no prediction
    bits_T[1:] = -log_probabilities_TV[:-1].gather(1, tokens_T[1:, None].long())[:, 0].numpy() / log(2)
    rows = ceil(T / TOKENS_PER_ROW)
    heights = [1.1, CANDIDATES * CELL_INCHES * 1.15] * rows
    width = min(T, TOKENS_PER_ROW) * CELL_INCHES + 1.6
    figure = Figure(figsize=(max(width, 5.5), sum(heights) + 0.55 * rows + 0.7), dpi=DPI, layout="constrained")
    grid = figure.subplots(2 * rows, 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, (top, bottom) in enumerate(zip(grid[::2], grid[1::2], strict=True)):
        start, end = row * TOKENS_PER_ROW, min(T, (row + 1) * TOKENS_PER_ROW)
        _plot_surprisal_row(top, bits_T[start:end], labels[start:end])
        offset = 1 if start == 0 else 0
        predictions_TV = log_probabilities_TV[start + offset - 1 : end - 1]
        _plot_candidates(bottom, predictions_TV, tokens_T[start + offset : end], vocabulary, offset)
        for axes in (top, bottom):
            axes.set_xlim(-0.5, min(T, TOKENS_PER_ROW) - 0.5)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), "Blues"), ax=list(grid), fraction=0.02, pad=0.01)
    bar.set_label("probability", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _font() -> dict[str, Any]:
    return {"family": font_families(), "size": 8}


def _plot_surprisal_row(axes: Axes, bits_T: np.ndarray, labels: list[str]) -> None:
    norm, cmap = Normalize(0, MAX_BITS), matplotlib.colormaps["turbo"]
    points = np.stack([np.arange(len(bits_T)), bits_T], axis=1)
    segments = np.stack([points[:-1], points[1:]], axis=1)
    segments = segments[~np.isnan(segments).any(axis=(1, 2))]
    axes.add_collection(LineCollection(list(segments), array=segments[:, :, 1].max(axis=1), cmap=cmap, norm=norm))
    axes.scatter(points[:, 0], points[:, 1], c=bits_T, cmap=cmap, norm=norm, s=9, zorder=3)
    axes.set_ylim(0, max(MAX_BITS, np.nanmax(bits_T, initial=0) + 0.5))
    axes.set_ylabel("bits", fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="y", alpha=0.3)
    axes.set_xticks(range(len(labels)), labels, **_font() | {"size": 9, "weight": "bold"})
    axes.tick_params(axis="x", length=0, pad=3)


def _plot_candidates(
    axes: Axes,
    log_probabilities_TV: Float[Tensor, "T V"],
    tokens_T: Integer[Tensor, " T"],
    vocabulary: list[str],
    offset: int,
) -> None:
    best = log_probabilities_TV.exp().topk(min(CANDIDATES, len(vocabulary)), dim=-1)
    probabilities_RT = best.values.T.numpy()
    height, length = probabilities_RT.shape
    extent = (offset - 0.5, offset + length - 0.5, height - 0.5, -0.5)
    axes.imshow(probabilities_RT, cmap="Blues", vmin=0, vmax=1, aspect="auto", extent=extent)
    for position in range(length):
        for rank in range(height):
            token = int(best.indices[position, rank])
            dark = probabilities_RT[rank, position] > 0.55
            style = {"ha": "center", "va": "center", "color": "white" if dark else "black", **_font()}
            axes.text(position + offset, rank, vocabulary[token], **style)
            if token == int(tokens_T[position]):
                corner = (position + offset - 0.5, rank - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="tab:red", linewidth=1.2))
    axes.set_xticks([])
    axes.set_yticks([0, height - 1] if height > 1 else [0], ["rank 1", f"rank {height}"][: min(height, 2)], fontsize=7)
    axes.tick_params(length=0)
