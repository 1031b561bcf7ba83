"""The table of models out of finished runs: python experiments/models/table.py outputs/models/*/

Runs of one name (another seed each) become one row, in place of what results.csv had of that name; its other rows
stay. Writes results.csv and puts the table into README.md, here and in the project's own, between the marks
<!-- models --> and <!-- /models -->.
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
    chosen = [word for word in run.overrides if re.match(r"\+?(model|recipe)=", word)]
    return " ".join(chosen) or f"model={run.choices['model']}"


def row(name: str, runs: list[dict[str, str]]) -> dict[str, str]:
    def all_of(key: str) -> list[float]:
        return [float(run[key]) for run in runs]

    first = runs[0]
    return {
        "run": f"`{name}`",
        "parameters": f"{int(first['parameters']):,}",
        "steps": f"{int(first['steps']):,}",
        "validation loss": mean_and_spread(all_of("val_loss")),
        "bits a character": f"{statistics.mean(all_of('val_bpc')):.3f}",
        "training": f"{statistics.mean(all_of('train_seconds')):.0f} s",
        "seeds": str(len(runs)),
        "on": f"{first['devices']} x {first['device']}",
    }


def main() -> None:
    with (HERE / "results.csv").open(newline="") as file:
        before = list(csv.DictReader(file))
    new = [
        {"run": name_of(run)} | {key: str(run.metrics[key]) for key in KEYS} for run in map(read_finished, sys.argv[1:])
    ]
    kept = [run for run in before if run["run"] not in {run["run"] for run in new}]
    groups = defaultdict(list)
    for run in kept + new:
        groups[run["run"]].append(run)
    worst_first = sorted(groups.items(), key=lambda item: -float(item[1][0]["val_loss"]))
    write_rows(HERE / "results.csv", [run for _, runs in worst_first for run in runs])
    content = table([row(name, runs) for name, runs in worst_first])
    for readme in (HERE / "README.md", ROOT / "README.md"):
        put(readme, "models", content)
    print(content)


if __name__ == "__main__":
    main()
