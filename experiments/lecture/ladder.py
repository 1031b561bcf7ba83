"""The measured ladder out of finished runs: python experiments/lecture/ladder.py outputs/lecture/*/

Runs of one rung (another seed each) become one row. Writes ladder.csv, curves.csv and
ladder.png, and puts the table and the samples into README.md.
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
# The validation losses that the lecture shows.
LECTURE = {
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
Ladder = dict[str, list[RunRecord]]


def row(rung: str, runs: list[RunRecord]) -> dict[str, str]:
    metrics = [run.metrics for run in runs]
    lecture = LECTURE[rung]
    return {
        "rung": f"[`{rung}`](../../conf/lecture/{rung}.yaml)",
        "the lecture": f"{lecture:.2f}" if lecture else "",
        "here": mean_and_spread([m["final_val_loss"] for m in metrics]) if runs else "not measured here",
        "seeds": str(len(runs) or ""),
        "parameters": f"{metrics[0]['parameters']:,}" if runs else "",
        "steps": f"{metrics[0]['steps']:,}" if runs else "",
        "seconds": f"{mean(m['train_seconds'] for m in metrics):.0f}" if runs else "",
        "on": metrics[0]["device"] if runs else "",
    }


def passage(rung: str, runs: list[RunRecord]) -> str:
    """The rung's own words for what it adds, and three lines of what it writes."""
    why = re.findall(r"^# (?!@)(.*)$", (CONF / f"{rung}.yaml").read_text(), re.MULTILINE)
    lines = [line for line in runs[0].sample.splitlines() if line.strip()][:3]
    return f"**{rung}** {' '.join(why)}\n\n```\n" + "\n".join(line[:100].rstrip() for line in lines) + "\n```\n\n"


def draw(ladder: Ladder) -> Figure:
    """The validation curves: the mean over seeds, and all between the lowest and the highest."""
    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, (rung, runs) in enumerate((rung, runs) for rung, runs in ladder.items() if runs):
        steps = runs[0].curve("val_loss")[0]
        losses_SN = np.array([run.curve("val_loss")[1] for run in runs])
        colour = f"C{number}"
        axes.plot(steps, losses_SN.mean(axis=0), color=colour, label=rung, marker=".", markersize=4)
        axes.fill_between(steps, losses_SN.min(axis=0), losses_SN.max(axis=0), color=colour, alpha=0.25, linewidth=0)
        if LECTURE[rung]:
            last = max(steps) * 1.01
            axes.plot([last], [LECTURE[rung]], marker="<", color=colour, markersize=7, clip_on=False)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("validation loss, nats a character (the whole split)")
    axes.set_ylim(top=3.2)
    axes.grid(alpha=0.3)
    axes.legend(title="rung (arrow: the lecture's figure)", ncols=2)
    axes.set_title("The lecture, rung by rung")
    return figure


def main() -> None:
    found = defaultdict(list)
    for run in map(read_finished, sys.argv[1:]):
        found[run.choices["lecture"]].append(run)
    ladder = {rung: sorted(found[rung], key=lambda run: run.metrics["seed"]) for rung in LECTURE}
    with (HERE / "ladder.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("rung", "seed", *KEYS))
        for rung, runs in ladder.items():
            writer.writerows((rung, run.metrics["seed"], *(run.metrics[k] for k in KEYS)) for run in runs)
    with (HERE / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("rung", "seed", "step", "val_loss"))
        for rung, runs in ladder.items():
            for run in runs:
                points = zip(*run.curve("val_loss"), strict=True)
                writer.writerows((rung, run.metrics["seed"], step, loss) for step, loss in points)
    draw(ladder).savefig(HERE / "ladder.png")
    content = table([row(rung, runs) for rung, runs in ladder.items()])
    put(HERE / "README.md", "ladder", content)
    put(HERE / "README.md", "samples", "".join(passage(rung, runs) for rung, runs in ladder.items() if runs))
    print(content)


if __name__ == "__main__":
    main()
