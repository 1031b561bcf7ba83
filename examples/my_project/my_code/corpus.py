"""A corpus: an object with a `name` and `read() -> str`."""

import random


class Arithmetic:
    """Lines of sums of two numbers below `limit`: `17+25=42`."""

    def __init__(self, lines: int, limit: int, seed: int):
        self.name = f"sums of numbers below {limit}"
        self._lines, self._limit, self._seed = lines, limit, seed

    def read(self) -> str:
        draw = random.Random(self._seed)
        pairs = [(draw.randrange(self._limit), draw.randrange(self._limit)) for _ in range(self._lines)]
        return "".join(f"{a}+{b}={a + b}\n" for a, b in pairs)
