"""Reports finished runs of the lecture's models: python experiments/lecture/ladder.py outputs/lecture/*/

Runs of one model with different seeds become one row. Writes ladder.csv, curves.csv and ladder.png, and inserts the
table and the samples into README.md.
"""

import csv
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib.figure import Figure

from chargpt.runs.record import RunRecord, read_finished
from chargpt.sweeps.markdown import mean_and_spread, put, table

HERE = Path(__file__).parent
CONF = HERE.parent.parent / "conf" / "lecture"
# Validation losses shown in the lecture.
LECTURE_LOSSES = {
    "bigram": 2.5,
    "head": 2.40,
    "multi_head": 2.28,
    "feed_forward": 2.24,
    "residual": 2.08,
    "layer_norm": 2.06,
    "scaled_up_cpu": None,
    "scaled_up": 1.48,
}
KEYS = ("final_val_loss", "val_loss", "initial_loss", "train_seconds", "parameters", "steps", "device", "torch")
Runs = dict[str, list[RunRecord]]  # of each model


def row(model: str, runs: list[RunRecord]) -> dict[str, str]:
    metrics = [run.metrics for run in runs]
    lecture_loss = LECTURE_LOSSES[model]
    return {
        "model": f"[`{model}`](../../conf/lecture/{model}.yaml)",
        "lecture": f"{lecture_loss:.2f}" if lecture_loss else "",
        "here": mean_and_spread([m["final_val_loss"] for m in metrics]) if runs else "not measured here",
        "seeds": str(len(runs) or ""),
        "parameters": f"{metrics[0]['parameters']:,}" if runs else "",
        "steps": f"{metrics[0]['steps']:,}" if runs else "",
        "seconds": f"{mean(m['train_seconds'] for m in metrics):.0f}" if runs else "",
        "device": metrics[0]["device"] if runs else "",
    }


def sample(model: str, runs: list[RunRecord]) -> str:
    """The description in the model's config, and three lines of its sample."""
    description = re.findall(r"^# (?!@)(.*)$", (CONF / f"{model}.yaml").read_text(), re.MULTILINE)
    lines = [line[:100].rstrip() for line in runs[0].sample.splitlines() if line.strip()][:3]
    return f"**{model}** {' '.join(description)}\n\n```\n" + "\n".join(lines) + "\n```\n\n"


def plot(runs_by_model: Runs) -> Figure:
    """Validation curves: the mean over seeds, and the range from the lowest to the highest."""
    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, (model, runs) in enumerate((model, runs) for model, runs in runs_by_model.items() if runs):
        steps = runs[0].curve("val_loss")[0]
        losses_SN = np.array([run.curve("val_loss")[1] for run in runs])
        color = f"C{number}"
        axes.plot(steps, losses_SN.mean(axis=0), color=color, label=model, marker=".", markersize=4)
        axes.fill_between(steps, losses_SN.min(axis=0), losses_SN.max(axis=0), color=color, alpha=0.25, linewidth=0)
        if LECTURE_LOSSES[model]:
            end = max(steps) * 1.01
            axes.plot([end], [LECTURE_LOSSES[model]], marker="<", color=color, markersize=7, clip_on=False)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("validation loss, nats per character (complete split)")
    axes.set_ylim(top=3.2)
    axes.grid(alpha=0.3)
    axes.legend(title="model (arrow: loss in the lecture)", ncols=2)
    axes.set_title("The lecture's models")
    return figure


def main() -> None:
    unsorted = defaultdict(list)
    for run in map(read_finished, sys.argv[1:]):
        unsorted[run.choices["lecture"]].append(run)
    runs_by_model = {model: sorted(unsorted[model], key=lambda run: run.metrics["seed"]) for model in LECTURE_LOSSES}
    with (HERE / "ladder.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("model", "seed", *KEYS))
        for model, runs in runs_by_model.items():
            writer.writerows((model, run.metrics["seed"], *(run.metrics[k] for k in KEYS)) for run in runs)
    with (HERE / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("model", "seed", "step", "val_loss"))
        for model, runs in runs_by_model.items():
            for run in runs:
                points = zip(*run.curve("val_loss"), strict=True)
                writer.writerows((model, run.metrics["seed"], step, loss) for step, loss in points)
    plot(runs_by_model).savefig(HERE / "ladder.png")
    content = table([row(model, runs) for model, runs in runs_by_model.items()])
    put(HERE / "README.md", "ladder", content)
    put(HERE / "README.md", "samples", "".join(sample(model, runs) for model, runs in runs_by_model.items() if runs))
    print(content)


if __name__ == "__main__":
    main()
