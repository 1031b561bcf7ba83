"""The table of models out of finished runs: python experiments/models/table.py outputs/models/*/

Runs of one name (another seed each) become one row. Writes results.csv and puts the table into README.md, here and
in the project's own, between the marks <!-- models --> and <!-- /models -->.
"""

import csv
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from chargpt.sweeps.finished import FinishedRun, read_run
from chargpt.sweeps.markdown import mean_and_spread, put, table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KEYS = ("val_loss", "final_val_loss", "initial_loss", "train_seconds", "parameters", "steps", "seed", "torch")


def name_of(run: FinishedRun) -> str:
    chosen = [word for word in run.overrides if re.match(r"\+?(model|recipe)=", word)]
    return " ".join(chosen) or f"model={run.choices['model']}"


def row(name: str, runs: list[FinishedRun]) -> dict[str, str]:
    def all_of(key: str) -> list[float]:
        return [run.metrics[key] for run in runs]

    first = runs[0].metrics
    return {
        "run": f"`{name}`",
        "parameters": f"{first['parameters']:,}",
        "steps": f"{first['steps']:,}",
        "validation loss": mean_and_spread(all_of("val_loss")),
        "bits a character": f"{statistics.mean(all_of('val_bpc')):.3f}",
        "training": f"{statistics.mean(all_of('train_seconds')):.0f} s",
        "seeds": str(len(runs)),
        "on": f"{first['devices']} x {first['device']}",
    }


def main() -> None:
    groups = defaultdict(list)
    for run in map(read_run, sys.argv[1:]):
        groups[name_of(run)].append(run)
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", *KEYS))
        writer.writerows((name, *(run.metrics[k] for k in KEYS)) for name, runs in groups.items() for run in runs)
    worst_first = sorted(groups.items(), key=lambda item: -item[1][0].metrics["val_loss"])
    content = table([row(name, runs) for name, runs in worst_first])
    for readme in (HERE / "README.md", ROOT / "README.md"):
        put(readme, "models", content)
    print(content)


if __name__ == "__main__":
    main()
