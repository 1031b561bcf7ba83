"""What was measured on this processor, kept in the user's cache folder, so that it is measured once."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_dir

from chargpt.utils.atomic_write import atomic_write_text
from chargpt.utils.processor import processor_name

FILE = "measurements.json"
ROUNDS = 7  # of a comparison; the fastest call of each option counts
HOPELESS = 3.0  # an option whose first call takes this many times as long as the first option's is not called again
SHORT = 1e-3  # seconds; a first call includes torch's preparations, which are longer than a shorter operation
GAIN = 0.9  # another option is chosen if it takes at most this fraction of the time of the first one
_unwritten: dict[str, Any] = {}  # results by name, if the file cannot be written


def processor() -> str:
    """The processor and torch's version. In a virtual machine, different processors may have the same model name."""
    features = sorted(name for name, value in torch.cpu.get_capabilities().items() if value is True)
    instructions = hashlib.sha256(" ".join(features).encode()).hexdigest()[:8]
    return f"{processor_name()} {instructions}, torch {torch.__version__}"


def measured(name: str, measure: Callable[[], Any], is_valid: Callable[[Any], bool]) -> Any:
    """The result of a measurement on this processor; measured once, then read from a file.

    Args:
        name: of the measurement.
        measure: returns data that JSON can represent.
        is_valid: whether data from the file is a possible result; a damaged file is measured again.
    """
    file = Path(user_cache_dir("chargpt")) / FILE
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(file.read_text())
        known = content if isinstance(content, dict) else {}
    here = known.get(processor())
    results = _unwritten | (here if isinstance(here, dict) else {})
    if name in results and is_valid(results[name]):
        return results[name]
    result = measure()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, json.dumps(known | {processor(): results | {name: result}}, indent=2) + "\n")
    except OSError:
        _unwritten[name] = result
    return result


def fastest(options: Mapping[str, Callable[[], object]]) -> str:
    """The name of the fastest option: the first one, unless another is clearly faster."""
    seconds = {name: [_seconds(work)] for name, work in options.items()}
    first = next(iter(options))
    hopeless = HOPELESS * max(SHORT, seconds[first][0])
    for _ in range(ROUNDS):
        for name, work in options.items():
            if seconds[name][0] < hopeless:
                seconds[name].append(_seconds(work))
    best = {name: min(times) for name, times in seconds.items()}
    name = min(best, key=lambda name: best[name])
    return name if best[name] <= GAIN * best[first] else first


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
