"""The settings that vary between runs, as keys and groups of overrides, without redundant ones.

A config group replaces the settings that follow from its options: `model/norm` is shown instead of the five keys of
each norm. A varying setting that was overridden on a command line is always shown.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chargpt.runs.identity import NOT_IDENTITY, NOT_IDENTITY_GROUPS, OLDER_DEFAULTS
from chargpt.runs.record import RunRecord

# If one key refers to another by interpolation, only the first in this order is shown.
SECTIONS = ("seed", "model", "optimizer", "schedule", "data", "trainer")
# If one group determines another, only the first is shown; groups not listed here, such as `lecture`, precede these.
_GROUPS = ("model", "recipe", "optimizer", "schedule", "data")


class _Absent:
    """The value of a setting that is missing from a run."""

    def __repr__(self) -> str:
        return ""


ABSENT = _Absent()
Columns = dict[str, list[Any]]


def swept_params(runs: Sequence[RunRecord]) -> Columns:
    """The keys and groups whose values differ, each with its value in each run (`ABSENT` if it is missing)."""
    readable = [n for n, run in enumerate(runs) if run.config]
    overridden = frozenset().union(*(run.overridden for run in runs))

    def differing(settings: Sequence[Mapping[str, Any]]) -> Columns:
        names = dict.fromkeys(name for each in settings for name in each)
        columns = {name: [each.get(name, OLDER_DEFAULTS.get(name, ABSENT)) for each in settings] for name in names}
        present = [n for n, each in enumerate(settings) if each]
        return {name: c for name, c in columns.items() if len({hashable(c[n]) for n in present}) > 1}

    def follows(column: list[Any], shown: Iterable[list[Any]]) -> bool:
        """Whether the shown columns determine the values of this one."""
        shown = list(shown)
        causes = [tuple(hashable(cause[n]) for cause in shown) for n in readable]
        return len(set(causes)) == len({*zip(causes, (hashable(column[n]) for n in readable), strict=True)})

    groups = differing([_groups(run) for run in runs])
    shown = {group: column for group, column in groups.items() if group in overridden}
    for group in sorted(groups, key=_group_order):
        if group not in shown and not follows(groups[group], shown.values()):
            shown[group] = groups[group]
    choices = list(shown.values())
    leaves = differing([_leaves(run) for run in runs])
    for key in sorted(leaves, key=lambda key: key not in overridden):  # overridden keys first: others may refer to them
        if key in overridden or not (follows(leaves[key], choices) or _is_interpolated(key, leaves[key], shown)):
            shown[key] = leaves[key]
    in_order = [*sorted(groups, key=_group_order), *leaves]
    return {name: shown[name] for name in in_order if name in shown}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def hashable(value: Any) -> Any:
    """A hashable form of a config value; 0 and 0.0 are equal."""
    if isinstance(value, list | tuple):
        return tuple(map(hashable, value))
    return str(value) if isinstance(value, dict) else value


def _groups(run: RunRecord) -> dict[str, str | None]:
    ignored = ("trainer", *NOT_IDENTITY_GROUPS)
    return {group: c for group, c in run.choices.items() if c is not None and group.split("/")[0] not in ignored}


def _leaves(run: RunRecord) -> dict[str, Any]:
    leaves: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}.{key}")
        elif name not in NOT_IDENTITY:
            leaves[name] = value

    for section in SECTIONS:
        if section in run.config:
            walk(run.config[section], section)
    return leaves


def _group_order(group: str) -> tuple[int, str]:
    if "/" in group:
        return len(_GROUPS) + 1, group
    return _GROUPS.index(group) + 1 if group in _GROUPS else 0, group


def _is_interpolated(key: str, column: list[Any], shown: Columns) -> bool:
    """Whether `key` refers to a shown key, as `data.block_size` refers to `model.block_size`."""
    tail = key.rsplit(".", 1)[-1]
    return any(other.rsplit(".", 1)[-1] == tail and shown[other] == column for other in shown)
