"""The comparison on the terminal: a line a setting, best first, and below it what went wrong."""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from chargpt.runs.record import RunRecord
from chargpt.sweeps.formatting import flops_text, key_text, short_names, short_path
from chargpt.sweeps.markdown import mean_and_spread
from chargpt.sweeps.ranking import Ranking, Row
from chargpt.sweeps.swept_params import ABSENT, is_number

# Left out, the last first, where a terminal is too narrow for them; sweep.csv has them all.
_FIGURES: dict[str, tuple[Callable[[RunRecord], float | None], Callable[[float], str]]] = {
    "val loss": (lambda run: run.figure("val_loss"), "{:.4f}".format),
    "bits/char": (lambda run: run.figure("val_bpc"), "{:.3f}".format),
    "parameters": (lambda run: run.figure("parameters"), "{:,.0f}".format),
    "FLOPs": (lambda run: run.training_flops, flops_text),
    "seconds": (lambda run: run.figure("train_seconds"), lambda s: f"{s:,.{0 if s >= 10 else 1}f}"),
    "tokens/s": (lambda run: run.figure("tokens_per_second"), "{:,.0f}".format),
}
_SAME = {"val loss": "val_loss", "bits/char": "val_bpc"}  # a column -> the monitor that shows the same
_REASONS = 8  # lines below the table


def print_ranking(ranking: Ranking, folder: Path, titled: bool = False) -> None:
    """Prints the table; whole, however wide, where standard output is no terminal.

    Args:
        folder: what the paths of the runs are told from.
        titled: whether a line above the table names the monitor; an empty one follows then.
    """
    console = _Console(highlight=False)
    left_out: list[str] = []
    names = [name for name in _FIGURES if _SAME.get(name) != ranking.monitor.name]
    for count in range(len(names), -1, -1):
        table = _table(ranking, names[:count])
        width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        left_out = names[count:]
        if not console.is_terminal or width <= console.width:
            break
    console.width = max(console.width, width)
    if titled:
        better = "less" if ranking.own.mode == "min" else "more"
        console.print(Text(f"{ranking.own.label}, {better} is better", style="bold"))
    console.print(table)
    if ranking.monitor != ranking.own:
        told = f"the tokenizers differ: ranked by {ranking.monitor.name}, not by {ranking.own.label}"
        console.print(Text(told, style="dim"), soft_wrap=True)
    if left_out:
        console.print(f"[dim]too narrow for {', '.join(left_out)}: sweep.csv has them[/]", soft_wrap=True)
    for text in _reasons(ranking, folder):
        console.print(text, soft_wrap=True)
    if titled:
        console.print()
    sys.stdout.flush()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """`compare.py | head` has read enough: rich would exit with 1."""
        raise BrokenPipeError


def _table(ranking: Ranking, figures: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    names = short_names(ranking.keys)
    for key in ranking.keys:
        values = [row.values.get(key, ABSENT) for row in ranking.rows]
        numbers = all(value is ABSENT or is_number(value) for value in values)
        table.add_column(names[key], justify="right" if numbers else "left", no_wrap=True)
    if not ranking.keys:
        table.add_column("run", no_wrap=True)
    score = "val loss" if ranking.monitor.name == "val_loss" else ranking.monitor.name
    table.add_column(Text(score), justify="right", no_wrap=True)
    if ranking.seeded:
        table.add_column(_seeds_name(ranking), justify="right", no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for place, row in enumerate(ranking.rows):
        keys = [key_text(row.values.get(key, ABSENT)) for key in ranking.keys]
        cells = [Text(cell) for cell in keys or [short_path(row.runs[0].path, row.runs[0].path.parent)]]
        cells.append(_score(row))
        cells += [Text(f"{len(row.finished)}")] if ranking.seeded else []
        cells += [Text(_figure(name, row)) for name in figures]
        cells.append(Text(row.state, style="" if row.state == "finished" else "yellow"))
        style = ("bold" if place == 0 else "") if row.finished else "dim"
        table.add_row(*cells, style=style)
    return table


def _seeds_name(ranking: Ranking) -> str:
    alone = all(len({str(run.seed) for run in row.runs}) == len(row.runs) for row in ranking.rows)
    return "seeds" if alone else "runs"


def _score(row: Row) -> Text:
    if row.scores:
        return Text(mean_and_spread(row.scores, digits=4))
    if row.finished or not row.lasts:
        return Text("")
    last = f"{mean(score for _, score in row.lasts):.4f} at {max(step for step, _ in row.lasts)}"
    return Text(last, style="italic")


def _figure(name: str, row: Row) -> str:
    of, form = _FIGURES[name]
    value = row.mean(of)
    return "" if value is None else form(value)


def _reasons(ranking: Ranking, folder: Path) -> list[Text]:
    """What is to be told of single runs, each reason once."""
    told: dict[tuple[str, str], list[RunRecord]] = {}
    for run in ranking.runs:
        if run.reason:
            told.setdefault((run.state, run.reason), []).append(run)
    lines = []
    for (state, reason), runs in told.items():
        inside = runs[0].path.absolute().is_relative_to(folder.absolute())
        place = short_path(runs[0].path, folder if inside else Path.cwd())
        others = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        line = Text(f"{state}: ", style="yellow")
        line.append(f"{reason[:200]}", style="default")
        lines.append(line.append(f"  ({place}{others})", style="dim"))
    more = len(lines) - _REASONS
    return lines if more <= 1 else [*lines[:_REASONS], Text(f"and {more} more: sweep.csv has them", style="dim")]
