"""Timing, bitwise comparison, a random text, and nanoGPT's model."""

import fcntl
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from cases import DATA, ROOT, Failure

WORDS = ["the", "king", "shall", "speak", "of", "love", "and", "war", "while", "all", "his", "men", "lie", "down"]
WORDS += ["to", "sleep", "O", "what", "a", "night"]


def take_turn(folder: Path, name: str, count: int, patience: float = 90.0) -> TextIO:
    """Waits until `count` processes are ready, then for the lock; the caller closes the file to release it.

    Each process creates a file NAME.ready in the folder; the stage creates it for a process that has ended.
    """
    (folder / f"{name}.ready").touch()
    deadline = time.monotonic() + patience
    while len(list(folder.glob("*.ready"))) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    turn = (folder / "turn.lock").open("w")
    fcntl.flock(turn, fcntl.LOCK_EX)
    return turn


def milliseconds(step: Callable[[], None], steps: int, device: str) -> float:
    """Duration of one step: the median over ten groups of steps, after a warm-up of one group."""
    import torch  # noqa: PLC0415 - run.py imports the kit without torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    group, seconds = max(1, steps // 10), []
    for _ in range(11):
        wait()
        start = time.perf_counter()
        for _ in range(group):
            step()
        wait()
        seconds.append((time.perf_counter() - start) / group)
    return 1000 * statistics.median(seconds[1:])


def first_difference(one: Any, other: Any, path: str = "") -> str:
    """Where two nested structures of plain data and tensors first differ; empty if they are bitwise equal."""
    import torch  # noqa: PLC0415 - run.py imports the kit without torch

    if isinstance(one, dict) and isinstance(other, dict):
        if different_keys := one.keys() ^ other.keys():
            return f"{path}.{next(iter(different_keys))}"
        pairs = ((one[key], other[key], f"{path}.{key}") for key in one)
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = ((a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return "" if one.dtype == other.dtype and torch.equal(one, other) else path
    else:
        return "" if type(one) is type(other) and one == other else path
    return next((place for place in (first_difference(*pair) for pair in pairs) if place), "")


def largest_difference(one: dict[int, float], other: dict[int, float]) -> float:
    """Largest absolute difference of two curves; NaN if their steps differ, or if they are empty or contain NaN."""
    if one.keys() != other.keys() or not one:
        return math.nan
    differences = [abs(one[step] - other[step]) for step in one]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def random_text(characters: int = 4000) -> str:
    """Random words in sentences, with a fixed seed."""
    rng, text = random.Random(0), ""
    while len(text) < characters:
        text += " ".join(rng.choices(WORDS, k=rng.randint(3, 9))).capitalize() + ".\n"
    return text[:characters]


def nanogpt() -> ModuleType:
    """Imports nanoGPT's model.py. Raises `Failure` if it is missing."""
    if not (DATA / "model.py").exists():
        raise Failure(f"no {(DATA / 'model.py').relative_to(ROOT)}")
    sys.path.insert(0, str(DATA))
    import model  # noqa: PLC0415 - optional file

    return model
