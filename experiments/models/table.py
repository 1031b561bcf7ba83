"""The table of models out of finished runs: python experiments/models/table.py outputs/models/*/

Runs of one name (another seed each) become one row. Writes results.csv and puts the table into README.md, here and
in the project's own, between the marks <!-- models --> and <!-- /models -->.
"""

import csv
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MARKS = re.compile(r"(<!-- models -->\n).*?(<!-- /models -->)", re.DOTALL)
HEADER = ("run", "parameters", "steps", "validation loss", "bits a character", "training", "seeds", "on")


def row(name: str, runs: list[dict]) -> dict[str, str]:
    def mean(key: str) -> float:
        return statistics.mean(run[key] for run in runs)

    losses = [run["val_loss"] for run in runs]
    spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
    first = runs[0]
    return {
        "run": f"`{name}`",
        "parameters": f"{first['parameters']:,}",
        "steps": f"{first['steps']:,}",
        "validation loss": f"{mean('val_loss'):.3f}{spread}",
        "bits a character": f"{mean('val_bpc'):.3f}",
        "training": f"{mean('train_seconds'):.0f} s",
        "seeds": str(len(runs)),
        "on": f"{first['devices']} x {first['device']}",
    }


def main() -> None:
    runs = defaultdict(list)
    for folder in map(Path, sys.argv[1:]):
        metrics = json.loads((folder / "metrics.json").read_text())
        overrides = re.findall(
            r"^- ((?:\+?lecture|model|recipe)=.*)$", (folder / ".hydra/overrides.yaml").read_text(), re.M
        )
        runs[" ".join(overrides) or "(the default)"].append(metrics)
    rows = [row(name, group) for name, group in sorted(runs.items(), key=lambda item: -item[1][0]["val_loss"])]
    with (HERE / "results.csv").open("w", newline="") as file:
        keys = (
            "val_loss",
            "final_val_loss",
            "initial_loss",
            "train_seconds",
            "parameters",
            "steps",
            "seed",
            "torch",
        )
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", *keys))
        writer.writerows((name, *(m[k] for k in keys)) for name, group in runs.items() for m in group)
    lines = [HEADER, ["---"] * len(HEADER), *(r.values() for r in rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    for readme in (HERE / "README.md", ROOT / "README.md"):
        readme.write_text(MARKS.sub(lambda found: found[1] + table + found[2], readme.read_text()))
    print(table)


if __name__ == "__main__":
    main()
