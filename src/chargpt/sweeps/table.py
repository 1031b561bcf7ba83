"""Prints the comparison: a table with one line per setting, best first, followed by the reasons of failures."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from chargpt.runs.record import RunRecord
from chargpt.sweeps.formatting import flops_text, key_text, short_names, short_path
from chargpt.sweeps.labels import row_label, row_labels
from chargpt.sweeps.markdown import mean_and_spread
from chargpt.sweeps.ranking import Ranking, Row
from chargpt.sweeps.swept_params import ABSENT, is_number
from chargpt.utils.terminal import without_controls

# On a narrow terminal the last columns are left out; the CSV file contains all of them.
_COLUMNS: dict[str, tuple[Callable[[RunRecord], float | None], Callable[[float], str]]] = {
    "val loss": (lambda run: run.metric("val_loss"), "{:.4f}".format),
    "bits/char": (lambda run: run.metric("val_bpc"), "{:.3f}".format),
    "steps": (lambda run: run.metric("steps"), "{:,.0f}".format),
    "parameters": (lambda run: run.metric("parameters"), "{:,.0f}".format),
    "FLOPs": (lambda run: run.training_flops, flops_text),
    "seconds": (lambda run: run.metric("train_seconds"), lambda s: f"{s:,.{0 if s >= 10 else 1}f}"),
    "tokens/s": (lambda run: run.metric("tokens_per_second"), "{:,.0f}".format),
}
_MONITOR_OF = {"val loss": "val_loss", "bits/char": "val_bpc"}  # these columns are omitted for these monitors
_PARTIAL = "*"  # marks scores of a part of the validation split
_MAX_REASONS = 8  # lines below the table


def print_ranking(ranking: Ranking, folder: Path, file: str, titled: bool = False) -> None:
    """Prints the table; with all columns if standard output is not a terminal.

    On a terminal that is too narrow for a column per setting, or for runs of which many have no value for them, the
    settings of a row are in one column.

    Args:
        folder: the folder to which the printed paths of its runs are relative.
        file: the name of the CSV file, which contains all columns.
        titled: whether to print the monitor above the table and an empty line below.
    """
    console = _Console(highlight=False)
    names = [name for name in _COLUMNS if _MONITOR_OF.get(name) != ranking.monitor.name]
    if len({run.metric("steps") for run in ranking.runs} - {None}) < 2:  # they differ, for example, by early stopping
        names.remove("steps")
    for joined in (False, True):
        shown = [*names]
        while True:
            table = _table(ranking, shown, joined)
            width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
            fits = not console.is_terminal or width <= console.width
            if fits or not shown:
                break
            shown.pop()
        if fits and (shown == names or not _is_mixed(ranking)):
            break
    left_out = names[len(shown) :]
    if not console.is_terminal:
        console.width = max(console.width, width)
    if titled:
        better = "lower" if ranking.run_monitor.mode == "min" else "higher"
        console.print(Text(f"{ranking.run_monitor.label}, {better} is better", style="bold"))
    console.print(table)
    if ranking.monitor != ranking.run_monitor:
        note = f"the tokenizers differ: ranked by {ranking.monitor.name}, not by {ranking.run_monitor.label}"
        console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)
    if any(run.partial_validation for run in ranking.runs):
        note = f"{_PARTIAL} on a part of the validation split: not comparable with the others"
        console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)
    if left_out:
        console.print(Text(f"more columns in {file}: {', '.join(left_out)}", style="dim"))
    for text in _reasons(ranking, folder, file):
        console.print(text, soft_wrap=not console.is_terminal)
    if titled:
        console.print()
    sys.stdout.flush()


class _Console(Console):
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else without_controls(text), style, control)

    def on_broken_pipe(self) -> None:
        """Raises, for `compare.py | head`; rich would exit with code 1."""
        raise BrokenPipeError


def _table(ranking: Ranking, columns: list[str], joined: bool) -> Table:
    """The table; `joined`: with the settings of a row in one column, which may have several lines."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    keys = [] if joined else ranking.keys
    labels = row_labels(ranking) if joined else [row_label(row) for row in ranking.rows]
    names = short_names(keys)
    for key in keys:
        values = [row.values.get(key, ABSENT) for row in ranking.rows]
        numbers = all(value is ABSENT or is_number(value) for value in values)
        table.add_column(names[key], justify="right" if numbers else "left", no_wrap=True)
    if not keys:
        table.add_column("settings" if joined or ranking.seeded else "run", overflow="fold")
    score = "val loss" if ranking.monitor.name == "val_loss" else ranking.monitor.name
    table.add_column(Text(score), justify="right", no_wrap=True)
    if ranking.seeded:
        table.add_column(_count_header(ranking), justify="right", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for position, (row, label) in enumerate(zip(ranking.rows, labels, strict=True)):
        cells = [Text(key_text(row.values.get(key, ABSENT))) for key in keys] or [Text(label)]
        cells.append(_score(row))
        cells += [Text(f"{len(row.finished)}")] if ranking.seeded else []
        cells += [Text(_cell(name, row)) for name in columns]
        cells.append(Text(row.state, style="" if row.state == "finished" else "yellow"))
        style = ("bold" if position == 0 else "") if row.finished else "dim"
        table.add_row(*cells, style=style)
    return table


def _is_mixed(ranking: Ranking) -> bool:
    """Whether some runs do not have the settings by which others differ, such as steps of the lecture and a sweep."""
    return any(
        row.values.get(key, ABSENT) is ABSENT for row in ranking.rows for key in ranking.keys if row.runs[0].config
    )


def _count_header(ranking: Ranking) -> str:
    distinct = all(len({str(run.seed) for run in row.runs}) == len(row.runs) for row in ranking.rows)
    return "seeds" if distinct else "runs"


def _score(row: Row) -> Text:
    if row.scores:
        mark = _PARTIAL if any(run.partial_validation for run in row.finished) else ""
        return Text(mean_and_spread(row.scores, digits=4) + mark)
    if row.finished or not row.last_values:
        return Text("")
    last = f"{mean(score for _, score in row.last_values):.4f} at {max(step for step, _ in row.last_values)}"
    return Text(last, style="italic")


def _cell(name: str, row: Row) -> str:
    of, format_number = _COLUMNS[name]
    value = row.mean(of)
    return "" if value is None else format_number(value)


def _reasons(ranking: Ranking, folder: Path, file: str) -> list[Text]:
    """One line per distinct reason of failure, with the first run that has it."""
    runs_by_reason: dict[tuple[str, str], list[RunRecord]] = {}
    for run in ranking.runs:
        if run.reason:
            runs_by_reason.setdefault((run.state, run.reason), []).append(run)
    lines = []
    for (state, reason), runs in runs_by_reason.items():
        inside = runs[0].path.absolute().is_relative_to(folder.absolute())
        path = short_path(runs[0].path, folder if inside else Path.cwd())
        others = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        line = Text(f"{state}: ", style="yellow")
        line.append(f"{reason[:200]}", style="default")
        lines.append(line.append(f"  ({path}{others})", style="dim"))
    more = len(lines) - _MAX_REASONS
    return lines if more <= 1 else [*lines[:_MAX_REASONS], Text(f"and {more} more: see {file}", style="dim")]
