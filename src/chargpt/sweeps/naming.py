"""The folder names of a sweep's jobs: functions of the overrides, so that the same command selects the same folders."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from chargpt.checkpoint.migrations import legacy_override, migrate_key
from chargpt.runs.identity import in_folder_name

# Settings that are part of the names of versions before 0.3, although they do not identify a run.
FORMERLY_NAMED = ("trainer.compile", "on_divergence")
# Groups whose options had a plus sign before 0.3.
FORMERLY_ADDED = ("lecture", "grid", "speedrun")


def job_name(overrides: Iterable[str], swept: Iterable[str], sweep_dir: str = "") -> str:
    """The folder name of a job.

    Args:
        overrides: the overrides of the job.
        swept: the keys that vary within the sweep.
        sweep_dir: the folder of the sweep; an existing folder with the name of an earlier version is used again.
    """
    if OmegaConf.is_list(overrides):  # do not resolve interpolations in the overrides
        overrides = cast(list[str], OmegaConf.to_container(overrides, resolve=False))  # of a ListConfig, a list
    overrides, swept = list(overrides), set(swept)
    names = []
    with_plus = [f"+{override}" if override.partition("=")[0] in FORMERLY_ADDED else override for override in overrides]
    for candidates in (overrides, with_plus, [legacy_override(override) for override in with_plus]):
        names += [_name(candidates, swept), _name(candidates, {*swept, *FORMERLY_NAMED})]
    if sweep_dir:
        names = [name for name in names if (Path(sweep_dir) / name).is_dir()] or names
    return names[0]


def _name(overrides: list[str], swept: set[str]) -> str:
    parser = OverridesParser.create()
    kept = []
    for override in overrides:
        key = migrate_key(parser.parse_override(override).key_or_group).replace("/", ".")
        if key in swept or in_folder_name(key):
            kept.append(override)
    # Overrides of the model come first: they vary most, and long names are truncated.
    kept.sort(key=lambda override: (not override.startswith("model"), override))
    return folder_name(",".join(kept))


def folder_name(overrides: str) -> str:
    """Converts any overrides to a safe, short folder name; different overrides get different names."""
    safe = re.sub(r"[^\w.=,+-]", "_", overrides, flags=re.ASCII) or "default"
    if safe != overrides or len(safe) > 100:
        safe = f"{safe[:90]}_{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"
    return safe


# Registered on import, because the worker processes of a launcher resolve it too.
OmegaConf.register_new_resolver("job_name", job_name, replace=True)
