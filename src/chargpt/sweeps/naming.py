"""Where a job of a sweep lives: a folder whose name is a function of its overrides, so that it is found again."""

import hashlib
import re
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

# What does not make a run another run (unless the sweep is over just this): it is left out of the name.
FREE = ("resume", "name", "trainer", "logger", "callbacks", "hydra", "data.cache_dir", "data.validation_tokens")
FREE_TRAINER = ("accelerator", "devices", "strategy", "num_nodes", "precision", "deterministic")
FREE += tuple(f"trainer.{key}" for key in (*FREE_TRAINER, "max_steps", "max_time", "log_every_n_steps"))
_FREE_GROUPS = ("logger", "callbacks", "hydra")


def job_name(overrides: Iterable[str], swept: Iterable[str]) -> str:
    """The folder name of a job.

    Args:
        overrides: of the job, as typed.
        swept: the keys that vary within the sweep.
    """
    if OmegaConf.is_list(overrides):  # not to look up an interpolation in them
        overrides = OmegaConf.to_container(overrides, resolve=False)
    parser, swept = OverridesParser.create(), set(swept)
    kept = []
    for word in overrides:
        key = parser.parse_override(word).key_or_group.replace("/", ".")
        if key in swept or not (key in FREE or key.split(".")[0] in _FREE_GROUPS):
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
