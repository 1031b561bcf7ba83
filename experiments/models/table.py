"""Reports finished runs of the models: python experiments/models/table.py outputs/models/*/

Runs with the same name and different seeds become one row, which replaces the rows of that name in results.csv; the
other rows are kept. Writes results.csv and inserts the table between the marks <!-- models --> and <!-- /models --> of
README.md in this folder and in the root of the project.
"""

import csv
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from chargpt.runs.record import RunRecord, read_finished
from chargpt.sweeps.markdown import mean_and_spread, put, table
from chargpt.utils.csv_io import write_rows

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KEYS = ("val_loss", "final_val_loss", "initial_loss", "val_bpc", "train_seconds", "parameters", "steps", "seed")
KEYS += ("devices", "device", "torch")


def name_of(run: RunRecord) -> str:
    selected = [override for override in run.overrides if re.match(r"\+?(model|recipe)=", override)]
    return " ".join(selected) or f"model={run.choices['model']}"


def row(name: str, runs: list[dict[str, str]]) -> dict[str, str]:
    def values(key: str) -> list[float]:
        return [float(run[key]) for run in runs]

    first = runs[0]
    return {
        "run": f"`{name}`",
        "parameters": f"{int(first['parameters']):,}",
        "steps": f"{int(first['steps']):,}",
        "validation loss": mean_and_spread(values("val_loss")),
        "bits per character": f"{statistics.mean(values('val_bpc')):.3f}",
        "training time": f"{statistics.mean(values('train_seconds')):.0f} s",
        "seeds": str(len(runs)),
        "devices": f"{first['devices']} x {first['device']}",
    }


def main() -> None:
    with (HERE / "results.csv").open(newline="") as file:
        old = list(csv.DictReader(file))
    new = [
        {"run": name_of(run)} | {key: str(run.metrics[key]) for key in KEYS} for run in map(read_finished, sys.argv[1:])
    ]
    kept = [run for run in old if run["run"] not in {run["run"] for run in new}]
    groups = defaultdict(list)
    for run in kept + new:
        groups[run["run"]].append(run)
    by_loss = sorted(groups.items(), key=lambda item: -float(item[1][0]["val_loss"]))
    write_rows(HERE / "results.csv", [run for _, runs in by_loss for run in runs])
    content = table([row(name, runs) for name, runs in by_loss])
    for readme in (HERE / "README.md", ROOT / "README.md"):
        put(readme, "models", content)
    print(content)


if __name__ == "__main__":
    main()
