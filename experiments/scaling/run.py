"""Trains the recipe of gpt_modern in many sizes and lengths, on more or less text; writes scaling.csv and scaling.png.

It inserts its tables into README.md, too.

    python experiments/scaling/run.py              # resumes if interrupted; under an hour on two cores
    python experiments/scaling/run.py --draw       # from scaling.csv, without training

Each run is `python train.py model=gpt_modern model.n_embd=... trainer.max_steps=...` on the training split, whose last
tenth is held out for evaluation.
"""

import argparse
import os
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from law import Law, best_size, fit

from chargpt.sweeps.markdown import put, table
from chargpt.utils.csv_io import write_rows

sys.path.insert(0, str(Path(__file__).parents[1]))
import held_out

HERE = Path(__file__).parent
LAYERS = 4
STEP_TOKENS = 12 * 128
TRAIN_TOKENS = int(0.9 * int(0.9 * 1_115_394))
# (channels, steps, share of the text): all sizes and lengths on the complete text, then an eighth of it, repeated.
RUNS = [(width, steps, 1.0) for steps in (100, 200, 400, 800) for width in (256, 192, 128, 64)]
RUNS += [(width, steps, 0.125) for steps in (50, 100, 400, 1600) for width in (128, 64)]
RUNS += [(width, 1600, 1.0) for width in (128, 64)]
BUDGETS = (1, 5, 15)  # minutes of one core


def run(width: int, steps: int, share: float) -> dict[str, float]:
    sizes = [
        "model=gpt_modern",
        f"model.n_layer={LAYERS}",
        f"model.n_embd={width}",
        "model.block_size=128",
        "data.batch_size=12",
    ]
    length = [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
    folder = HERE / "runs"
    data = held_out.data_overrides(folder, share)
    metrics = held_out.train(folder / f"{width}_{steps}_{share:g}", [*sizes, *length, *data])
    return {"n_embd": width, "steps": steps, "share": share} | metrics


def arrays(rows: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters of the blocks N, tokens D, and the loss of each run."""
    parameters = np.array([12 * LAYERS * int(row["n_embd"]) ** 2 for row in rows], dtype=float)
    tokens = np.array([int(row["steps"]) * STEP_TOKENS for row in rows], dtype=float)
    return parameters, tokens, np.array([float(row["final_val_loss"]) for row in rows])


def complete_text(rows: list[dict]) -> list[dict]:
    """The runs without repetition of a part of the text."""
    return [row for row in rows if float(row["share"]) == 1]


def seconds_per_token(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """N and the seconds per token of each size: the minimum over its runs, because some shared their core."""
    by_width: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        by_width[int(row["n_embd"])].append(float(row["train_seconds"]) / int(row["steps"]) / STEP_TOKENS)
    widths = sorted(by_width)
    return np.array([12.0 * LAYERS * width**2 for width in widths]), np.array(
        [min(by_width[width]) for width in widths]
    )


def write_tables(rows: list[dict], law: Law) -> None:
    """Inserts the tables into README.md."""
    for name, share in (("grid", 1.0), ("repetition", 0.125)):
        by_size = {(int(r["n_embd"]), int(r["steps"])): r for r in rows if float(r["share"]) == share}
        widths, steps = (sorted({key[i] for key in by_size}) for i in (0, 1))
        lines = []
        for width in widths:
            line = {"channels": str(width), "parameters of the blocks": f"{12 * LAYERS * width**2:,}"}
            for n in steps:
                epochs = n * STEP_TOKENS / (share * TRAIN_TOKENS)
                row = by_size.get((width, n))
                line[f"{n} steps ({epochs:.2g} epochs)"] = f"{float(row['final_val_loss']):.3f}" if row else ""
            lines.append(line)
        put(HERE / "README.md", name, table(lines))
    sizes, seconds = seconds_per_token(rows)
    lines = []
    for minutes in BUDGETS:
        parameters, tokens, loss = best_size(law, sizes, seconds, 60 * minutes)
        lines.append(
            {
                "minutes of one core": str(minutes),
                "parameters of the blocks": f"{parameters / 1e6:.2f}M",
                "channels in 4 layers": f"{(parameters / 12 / LAYERS) ** 0.5:.0f}",
                "tokens": f"{tokens / 1e6:.2f}M",
                "epochs": f"{tokens / TRAIN_TOKENS:.1f}",
                "predicted loss": f"{loss:.3f}",
            }
        )
    put(HERE / "README.md", "budgets", table(lines))
    coefficients = f"E = {law.E:.3f}, A = {law.A:.3g}, alpha = {law.alpha:.3f}, B = {law.B:.3g}, beta = {law.beta:.3f}"
    errors = f"root mean square error {law.rms:.4f} nats, {law.left_out:.4f} on runs left out of the fit"
    put(HERE / "README.md", "fit", f"{coefficients}; {errors}; {len(complete_text(rows))} runs on the complete text.\n")


def plot(rows: list[dict], law: Law) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    widths = sorted({int(row["n_embd"]) for row in rows})
    colors = dict(zip(widths, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(widths))), strict=True))
    for axis, share, title in ((axes[0], 1.0, "Complete text"), (axes[1], 0.125, "An eighth of it, repeated")):
        for width in widths:
            selected = [row for row in rows if int(row["n_embd"]) == width and float(row["share"]) == share]
            if not selected:
                continue
            _, tokens, losses = arrays(selected)
            style = "o" if share == 1 else "o-"
            axis.plot(tokens / 1e6, losses, style, ms=5, lw=1.2, color=colors[width], label=f"{width} channels")
            if share == 1:
                curve = np.geomspace(tokens.min(), tokens.max(), 100)
                axis.plot(curve / 1e6, law(12 * LAYERS * width**2, curve), color=colors[width], lw=1.2)
        axis.set(xscale="log", title=title, xlabel="tokens seen, millions", ylabel="loss, nats per character")
    axes[0].legend(frameon=False)
    sizes, seconds = seconds_per_token(rows)
    for minutes in BUDGETS:
        tokens = 60 * minutes / seconds
        losses = law(sizes, tokens)
        axes[2].plot(sizes / 1e6, losses, "-o", ms=4, label=f"{minutes} min")
    axes[2].set(xscale="log", title="The law, at equal time", xlabel="parameters of the blocks, millions")
    axes[2].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        ticks = sorted({float(x) for line in axis.lines if line.get_marker() == "o" for x in line.get_xdata()})
        axis.set_xticks(ticks, [f"{value:.2g}" for value in ticks])
        axis.set_xticks([], minor=True)
    figure.savefig(HERE / "scaling.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="do not train")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of parallel runs, one thread each")
    args = parser.parse_args()
    rows: list[dict] = held_out.read_rows(HERE / "scaling.csv")
    done = {(int(row["n_embd"]), int(row["steps"]), float(row["share"])) for row in rows}
    missing = [] if args.draw else [arguments for arguments in RUNS if arguments not in done]
    for row in held_out.in_parallel(run, missing, args.jobs):
        rows.append(row)
        print(row, flush=True)
        write_rows(HERE / "scaling.csv", rows)
    law = fit(*arrays(complete_text(rows)))
    print(law)
    write_tables(rows, law)
    plot(rows, law)


if __name__ == "__main__":
    main()
