"""Timing, comparisons to the last bit, and the texts and models that are measured with."""

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
    """Waits until `count` processes are ready, then for the lock; the caller closes the file when it is done.

    Each process leaves a file NAME.ready in the folder; the stage leaves it for one that has ended.
    """
    (folder / f"{name}.ready").touch()
    deadline = time.monotonic() + patience
    while len(list(folder.glob("*.ready"))) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    turn = (folder / "turn.lock").open("w")
    fcntl.flock(turn, fcntl.LOCK_EX)
    return turn


def milliseconds(step: Callable[[], None], steps: int, device: str) -> float:
    """Of one step: the median over ten parts, after as many steps as one part has."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    part, seconds = max(1, steps // 10), []
    for _ in range(11):
        wait()
        start = time.perf_counter()
        for _ in range(part):
            step()
        wait()
        seconds.append((time.perf_counter() - start) / part)
    return 1000 * statistics.median(seconds[1:])


def same_bits(one: Any, other: Any, path: str = "") -> str:
    """Where two nests of plain data and tensors differ first; empty where they are equal to the last bit."""
    import torch

    if isinstance(one, dict) and isinstance(other, dict):
        if other_keys := one.keys() ^ other.keys():
            return f"{path}.{next(iter(other_keys))}"
        pairs = ((one[key], other[key], f"{path}.{key}") for key in one)
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = ((a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return "" if one.dtype == other.dtype and torch.equal(one, other) else path
    else:
        return "" if type(one) is type(other) and one == other else path
    return next((where for where in (same_bits(*pair) for pair in pairs) if where), "")


def largest_difference(one: dict[int, float], other: dict[int, float]) -> float:
    """Between two curves over the same steps; NaN if the steps differ or one of them is empty."""
    if one.keys() != other.keys() or not one:
        return math.nan
    differences = [abs(one[step] - other[step]) for step in one]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def invented_text(characters: int = 4000) -> str:
    """Nonsense in sentences, always the same."""
    draw, text = random.Random(0), ""
    while len(text) < characters:
        text += " ".join(draw.choices(WORDS, k=draw.randint(3, 9))).capitalize() + ".\n"
    return text[:characters]


def nanogpt() -> ModuleType:
    """nanoGPT's model.py. Raises `Failure` where it is not there."""
    if not (DATA / "model.py").exists():
        raise Failure(f"no {(DATA / 'model.py').relative_to(ROOT)}")
    sys.path.insert(0, str(DATA))
    import model

    return model
