"""Reports finished runs of the grid: python experiments/grid/table.py outputs/grid/*/

Writes sweep.csv and sweep.png, and inserts the best and worst settings and the mean for each value into README.md.
"""

import sys
from pathlib import Path
from statistics import mean

from chargpt.runs.record import is_run, read_run
from chargpt.sweeps.compare import compare
from chargpt.sweeps.formatting import flops_text, short_names
from chargpt.sweeps.markdown import put, table
from chargpt.sweeps.ranking import Row, rank

HERE = Path(__file__).parent
SHOWN = 5  # of the best and of the worst runs


def table_row(position: int, row: Row, names: dict[str, str]) -> dict[str, str]:
    flops = row.mean(lambda run: run.training_flops)
    seconds = row.mean(lambda run: run.metric("train_seconds"))
    parameters = row.mean(lambda run: run.metric("parameters"))
    return {
        "": str(position),
        **{names[key]: f"{value:g}" for key, value in row.values.items()},
        "validation loss": f"{row.score:.3f}",
        "parameters": f"{parameters:,.0f}",
        "FLOPs": flops_text(flops),
        "seconds": f"{seconds:.0f}",
    }


def main() -> None:
    runs = [path for path in map(Path, sys.argv[1:]) if is_run(path)]
    compare(runs, HERE, "sweep")
    ranking = rank([read_run(run) for run in runs])
    rows, names = ranking.scored, short_names(ranking.keys)
    shown = [i for i in range(len(rows)) if i < SHOWN or i >= len(rows) - SHOWN]
    put(HERE / "README.md", "grid", table([table_row(i + 1, rows[i], names) for i in shown]))
    means = []
    for key in ranking.keys:
        values = sorted({row.values[key] for row in rows})
        losses = {v: mean(row.score for row in rows if row.values[key] == v) for v in values}
        means.append(
            {
                "setting": f"`{key}`",
                "mean validation loss for each value": ", ".join(f"{v:g}: {losses[v]:.3f}" for v in values),
            }
        )
    put(HERE / "README.md", "means", table(means))


if __name__ == "__main__":
    main()
