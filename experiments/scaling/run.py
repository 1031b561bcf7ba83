"""The default recipe in many sizes, lengths and amounts of text: scaling.csv, scaling.png and README.md's tables.

    python experiments/scaling/run.py              # goes on where it was cut off; under an hour on two cores
    python experiments/scaling/run.py --draw       # from scaling.csv alone

Each run is `python train.py model.n_embd=... trainer.max_steps=...` on the training split, whose last tenth is
held out to measure on.
"""

import argparse
import os
import sys
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
TOKENS = 12 * 128  # a step
WHOLE = int(0.9 * int(0.9 * 1_115_394))  # characters to train on
# (channels, steps, share of the text): first all sizes and lengths on all of it, then repetition of an eighth.
RUNS = [(width, steps, 1.0) for steps in (100, 200, 400, 800) for width in (256, 192, 128, 64)]
RUNS += [(width, steps, 0.125) for steps in (50, 100, 400, 1600) for width in (128, 64)]
RUNS += [(width, 1600, 1.0) for width in (128, 64)]
BUDGETS = (1, 5, 15)  # minutes of one core


def run(width: int, steps: int, share: float) -> dict[str, float]:
    sizes = [f"model.n_layer={LAYERS}", f"model.n_embd={width}", "model.block_size=128", "data.batch_size=12"]
    length = [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
    folder = HERE / "runs"
    data = held_out.words(folder, share)
    found = held_out.train(folder / f"{width}_{steps}_{share:g}", [*sizes, *length, *data])
    return {"n_embd": width, "steps": steps, "share": share} | found


def arrays(rows: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N of the blocks, D seen, and the loss of each run."""
    parameters = np.array([12 * LAYERS * int(row["n_embd"]) ** 2 for row in rows], dtype=float)
    tokens = np.array([int(row["steps"]) * TOKENS for row in rows], dtype=float)
    return parameters, tokens, np.array([float(row["final_val_loss"]) for row in rows])


def whole(rows: list[dict]) -> list[dict]:
    """The runs on all of the text."""
    return [row for row in rows if float(row["share"]) == 1]


def seconds_per_token(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Of each size: N, and the least over its runs, which now and then had to share their core."""
    widths = sorted({int(row["n_embd"]) for row in rows})
    spent = [
        min(float(row["train_seconds"]) / int(row["steps"]) / TOKENS for row in rows if int(row["n_embd"]) == width)
        for width in widths
    ]
    return np.array([12.0 * LAYERS * width**2 for width in widths]), np.array(spent)


def describe(rows: list[dict], law: Law) -> None:
    """README.md's tables."""
    for name, share in (("grid", 1.0), ("repetition", 0.125)):
        found = {(int(r["n_embd"]), int(r["steps"])): r for r in rows if float(r["share"]) == share}
        widths, steps = (sorted({key[i] for key in found}) for i in (0, 1))
        lines = []
        for width in widths:
            line = {"channels": str(width), "parameters of the blocks": f"{12 * LAYERS * width**2:,}"}
            for n in steps:
                epochs = n * TOKENS / (share * WHOLE)
                row = found.get((width, n))
                line[f"{n} steps ({epochs:.2g} epochs)"] = f"{float(row['final_val_loss']):.3f}" if row else ""
            lines.append(line)
        put(HERE / "README.md", name, table(lines))
    sizes, spent = seconds_per_token(rows)
    lines = []
    for minutes in BUDGETS:
        parameters, tokens, loss = best_size(law, sizes, spent, 60 * minutes)
        lines.append(
            {
                "minutes of one core": str(minutes),
                "parameters of the blocks": f"{parameters / 1e6:.2f}M",
                "channels in 4 layers": f"{(parameters / 12 / LAYERS) ** 0.5:.0f}",
                "tokens": f"{tokens / 1e6:.2f}M",
                "epochs": f"{tokens / WHOLE:.1f}",
                "predicted loss": f"{loss:.3f}",
            }
        )
    put(HERE / "README.md", "budgets", table(lines))
    numbers = f"E = {law.E:.3f}, A = {law.A:.3g}, alpha = {law.alpha:.3f}, B = {law.B:.3g}, beta = {law.beta:.3f}"
    errors = f"root mean square error {law.rms:.4f} nats, {law.left_out:.4f} on runs left out of the fit"
    put(HERE / "README.md", "fit", f"{numbers}; {errors}; {len(whole(rows))} runs on the whole text.\n")


def draw(rows: list[dict], law: Law) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    widths = sorted({int(row["n_embd"]) for row in rows})
    colours = dict(zip(widths, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(widths))), strict=True))
    for axis, share, title in ((axes[0], 1.0, "All of the text"), (axes[1], 0.125, "An eighth of it, repeated")):
        for width in widths:
            mine = [row for row in rows if int(row["n_embd"]) == width and float(row["share"]) == share]
            if not mine:
                continue
            _, tokens, losses = arrays(mine)
            style = "o" if share == 1 else "o-"
            axis.plot(tokens / 1e6, losses, style, ms=5, lw=1.2, color=colours[width], label=f"{width} channels")
            if share == 1:
                line = np.geomspace(tokens.min(), tokens.max(), 100)
                axis.plot(line / 1e6, law(12 * LAYERS * width**2, line), color=colours[width], lw=1.2)
        axis.set(xscale="log", title=title, xlabel="tokens seen, millions", ylabel="loss, nats a character")
    axes[0].legend(frameon=False)
    sizes, spent = seconds_per_token(rows)
    for minutes in BUDGETS:
        tokens = 60 * minutes / spent
        losses = law(sizes, tokens)
        axes[2].plot(sizes / 1e6, losses, "-o", ms=4, label=f"{minutes} min")
    axes[2].set(xscale="log", title="The law, at equal time", xlabel="parameters of the blocks, millions")
    axes[2].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        at = sorted({float(x) for line in axis.lines if line.get_marker() == "o" for x in line.get_xdata()})
        axis.set_xticks(at, [f"{value:.2g}" for value in at])
        axis.set_xticks([], minor=True)
    figure.savefig(HERE / "scaling.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="train nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side, a thread each")
    args = parser.parse_args()
    rows: list[dict] = held_out.measured(HERE / "scaling.csv")
    done = {(int(row["n_embd"]), int(row["steps"]), float(row["share"])) for row in rows}
    wanted = [] if args.draw else [one for one in RUNS if one not in done]
    for row in held_out.side_by_side(run, wanted, args.jobs):
        rows.append(row)
        print(row, flush=True)
        write_rows(HERE / "scaling.csv", rows)
    law = fit(*arrays(whole(rows)))
    print(law)
    describe(rows, law)
    draw(rows, law)


if __name__ == "__main__":
    main()
