"""Draws speed.png and growth.png from the CSV files beside this file, and prints the fitted exponents."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
COLOURS = {"nanogpt": "#8c8c8c", "bare": "#dd8452", "chargpt": "#4c72b0", "chargpt_8": "#55a868"}
NAMES = {"nanogpt": "nanoGPT", "bare": "a bare loop", "chargpt": "chargpt", "chargpt_8": "chargpt, 8 at once"}


def read(name: str) -> list[dict]:
    with (HERE / name).open() as file:
        return list(csv.DictReader(file))


def parameters(row: dict) -> float:
    return 12 * int(row["n_layer"]) * int(row["n_embd"]) ** 2


def finish(axis, title: str, x: str, y: str) -> None:
    axis.set(xscale="log", title=title, xlabel=x, ylabel=y)
    axis.xaxis.set_minor_formatter("")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, which="major")


def ticks(axis, values: list[float]) -> None:
    axis.set_xticks(values, [f"{value:g}" for value in values])


def speed() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axis, vary, key in ((axes[0], "width", "n_embd"), (axes[1], "depth", "n_layer")):
        rows = [row for row in read("shapes.csv") if row["vary"] == vary]
        for who in ("nanogpt", "bare", "chargpt"):
            points = [(int(row[key]), int(row["tokens_per_second"])) for row in rows if row["who"] == who]
            axis.plot(*zip(*points, strict=True), marker="o", ms=4, color=COLOURS[who], label=NAMES[who])
        axis.set_yscale("log")
        ticks(axis, sorted({int(row[key]) for row in rows}))
        label = {"width": "channels, 6 layers", "depth": "layers, 256 channels"}[vary]
        finish(axis, f"Training, against {vary}", label, "")
    axes[0].set_ylabel("tokens/s")
    axes[0].legend(frameon=False)
    rows = read("sampling.csv")
    blocks = sorted({int(row["block_size"]) for row in rows})
    for who in ("nanogpt", "chargpt", "chargpt_8"):
        found = [[float(row[who]) for row in rows if int(row["block_size"]) == block] for block in blocks]
        axes[2].plot(blocks, [np.median(f) for f in found], marker="o", ms=4, color=COLOURS[who], label=NAMES[who])
    axes[2].set_yscale("log")
    ticks(axes[2], blocks)
    finish(axes[2], "Sampling, 6 x 6 x 384", "block size", "characters/s")
    axes[2].legend(frameon=False)
    figure.savefig(HERE / "speed.png", dpi=150)


def growth() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axis, vary in zip(axes, ("block size", "model"), strict=True):
        rows = [row for row in read("growth.csv") if row["vary"] == vary]
        x = np.array([int(row["block_size"]) if vary == "block size" else parameters(row) / 1e6 for row in rows])
        twin = axis.twinx()
        series = ((axis, "milliseconds", "#4c72b0"), (twin, "peak_mib", "#dd8452"))
        for on, key, colour in series:
            y = np.array([float(row[key]) for row in rows])
            slope, _ = np.polyfit(np.log(x[-3:]), np.log(y[-3:]), 1)
            print(f"{key} against {vary}: exponent {slope:.2f} over the last three")
            on.plot(x, y, marker="o", ms=4, color=colour)
            on.set_yscale("log")
            label = {"milliseconds": "milliseconds a step", "peak_mib": "peak memory, MiB"}[key]
            on.set_ylabel(label, color=colour)
            on.spines["top"].set_visible(False)
        ticks(axis, [float(f"{value:.2g}") for value in x])
        title = "4096 tokens a step, 4 x 128" if vary == "block size" else "1024 tokens a step, block 256"
        axis.set(xscale="log", title=title, xlabel=vary if vary == "block size" else "parameters, millions")
        axis.xaxis.set_minor_formatter("")
        axis.grid(alpha=0.25, which="major")
    figure.savefig(HERE / "growth.png", dpi=150)


if __name__ == "__main__":
    speed()
    growth()
