"""Plots speed.png and growth.png from the CSV files in this folder, and prints the fitted exponents."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
BASELINE_MIB = 327  # peak memory of a process that trains a bigram
COLORS = {"nanogpt": "#8c8c8c", "bare": "#dd8452", "chargpt": "#4c72b0", "chargpt_8": "#55a868"}
NAMES = {"nanogpt": "nanoGPT", "bare": "a bare loop", "chargpt": "chargpt", "chargpt_8": "chargpt, 8 in parallel"}


def read(name: str) -> list[dict]:
    with (HERE / name).open() as file:
        return list(csv.DictReader(file))


def parameters(row: dict) -> float:
    return 12 * int(row["n_layer"]) * int(row["n_embd"]) ** 2


def set_axis(axis, title: str, x_label: str, y_label: str, values: list[float]) -> None:
    axis.set(xscale="log", title=title, xlabel=x_label, ylabel=y_label)
    axis.set_xticks(values, [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values])
    axis.set_xticks([], minor=True)
    axis.spines["top"].set_visible(False)
    axis.grid(alpha=0.25, which="major")


def speed() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axis, vary, key in ((axes[0], "width", "n_embd"), (axes[1], "depth", "n_layer")):
        rows = [row for row in read("shapes.csv") if row["vary"] == vary]
        for who in ("nanogpt", "bare", "chargpt"):
            points = [(int(row[key]), int(row["tokens_per_second"])) for row in rows if row["who"] == who]
            axis.plot(*zip(*points, strict=True), marker="o", ms=4, color=COLORS[who], label=NAMES[who])
        axis.set_yscale("log")
        label = {"width": "channels, 6 layers", "depth": "layers, 256 channels"}[vary]
        set_axis(axis, f"Training, by {vary}", label, "tokens/s", sorted({int(row[key]) for row in rows}))
    axes[0].legend(frameon=False)
    rows = read("sampling.csv")
    blocks = sorted({int(row["block_size"]) for row in rows})
    for who in ("nanogpt", "chargpt", "chargpt_8"):
        speeds = [[float(row[who]) for row in rows if int(row["block_size"]) == block] for block in blocks]
        axes[2].plot(
            blocks, [np.median(values) for values in speeds], marker="o", ms=4, color=COLORS[who], label=NAMES[who]
        )
    axes[2].set_yscale("log")
    set_axis(axes[2], "Sampling, 6 x 6 x 384", "block size", "characters/s", blocks)
    axes[2].legend(frameon=False)
    figure.savefig(HERE / "speed.png", dpi=150)


def growth() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, vary in zip(axes, ("block size", "model"), strict=True):
        rows = [row for row in read("growth.csv") if row["vary"] == vary]
        x = np.array([int(row["block_size"]) if vary == "block size" else parameters(row) / 1e6 for row in rows])
        milliseconds = np.array([float(row["milliseconds"]) for row in rows])
        memory = np.array([float(row["peak_mib"]) for row in rows]) - BASELINE_MIB
        for name, y in (("time", milliseconds), ("memory", memory)):
            last = exponent(x[-3:], y[-3:])
            print(f"{name} against {vary}: exponent {exponent(x, y):.2f}, over the last three {last:.2f}")
        axis.plot(x, milliseconds, marker="o", ms=4, color=COLORS["chargpt"])
        axis.set_yscale("log")
        title = (
            "4096 tokens per step, 4 layers, 128 channels"
            if vary == "block size"
            else "1024 tokens per step, block 256"
        )
        label = vary if vary == "block size" else "parameters, millions"
        set_axis(axis, title, label, "", list(x))
        axis.set_ylabel("milliseconds per step", color=COLORS["chargpt"])
        twin = axis.twinx()
        twin.plot(x, memory, marker="o", ms=4, color=COLORS["bare"])
        twin.set_ylabel("memory, MiB", color=COLORS["bare"])
        twin.set_ylim(0, memory.max() * 1.6)
        twin.spines["top"].set_visible(False)
    figure.savefig(HERE / "growth.png", dpi=150)


def exponent(x: np.ndarray, y: np.ndarray) -> float:
    """The exponent of a power law, by least squares on the logarithms."""
    return np.polyfit(np.log(x), np.log(y), 1)[0]


if __name__ == "__main__":
    speed()
    growth()
