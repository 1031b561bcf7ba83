"""Where a job of a sweep lives: a folder whose name is a function of its overrides, so that it is found again."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from chargpt.checkpoint.migrations import legacy_override, migrate_key
from chargpt.runs.identity import in_folder_name

# Settings that versions before 0.3 made part of the name, although they do not identify a run.
FORMERLY_NAMED = ("trainer.compile", "on_divergence")


def job_name(overrides: Iterable[str], swept: Iterable[str], sweep_dir: str = "") -> str:
    """The folder name of a job.

    Args:
        overrides: of the job, as typed.
        swept: the keys that vary within the sweep.
        sweep_dir: where the sweep's folders are; one that an earlier version named is found again.
    """
    if OmegaConf.is_list(overrides):  # not to look up an interpolation in them
        overrides = OmegaConf.to_container(overrides, resolve=False)
    overrides, swept = list(overrides), set(swept)
    names = []
    for words in (overrides, [legacy_override(word) for word in overrides]):
        names += [_name(words, swept), _name(words, {*swept, *FORMERLY_NAMED})]
    if sweep_dir:
        names = [name for name in names if (Path(sweep_dir) / name).is_dir()] or names
    return names[0]


def _name(overrides: list[str], swept: set[str]) -> str:
    parser = OverridesParser.create()
    kept = []
    for word in overrides:
        key = migrate_key(parser.parse_override(word).key_or_group).replace("/", ".")
        if key in swept or in_folder_name(key):
            kept.append(word)
    kept.sort(key=lambda word: (not word.startswith("model"), word))  # what varies most must not be cut off
    return folder_name(",".join(kept))


def folder_name(overrides: str) -> str:
    """Any overrides as a safe, short folder name; different overrides get different names."""
    safe = re.sub(r"[^\w.=,+-]", "_", overrides, flags=re.ASCII) or "default"
    if safe != overrides or len(safe) > 100:
        safe = f"{safe[:90]}_{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"
    return safe


# At import, because the processes of a launcher resolve it too.
OmegaConf.register_new_resolver("job_name", job_name, replace=True)
