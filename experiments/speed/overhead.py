"""Measures the overhead of train.py over a bare loop, in one process, on the same weights, in turns of 50 steps.

    python experiments/speed/overhead.py                               # bigram and gpt_nano -> overhead.csv
    PYTHONPATH=../old/src python experiments/speed/overhead.py         # another checkout; printed only

Two processes of the same program differ by up to 10 % on a small machine, depending on their memory layout; turns
within one process do not. The defaults of train.py are on: loggers, progress bar, timer, checkpoints. To compare two
checkouts, alternate between the two commands a few times: a machine's speed changes within minutes.
"""

import argparse
import contextlib
import runpy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from one import HERE, ROOT, SHAPES, shape_overrides

import chargpt
from chargpt.model.loss import cross_entropy
from chargpt.utils.csv_io import write_rows

TURN = 50  # steps
CHECKOUT = Path(chargpt.__file__).resolve().parents[2]  # the measured one, with its train.py and conf/


class Turns(L.Callback):
    """Inserts 50 steps of a bare loop before every 50th step of Lightning, and measures both, turn by turn."""

    def __init__(self) -> None:
        self.bare: list[float] = []  # ms per step
        self.chargpt: list[float] = []
        self._turn_start: float | None = None

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % TURN:
            return
        start = time.perf_counter()
        if self._turn_start is not None:
            self.chargpt.append(1000 * (start - self._turn_start) / TURN)
        batches = iter(trainer.train_dataloader)
        for _ in range(TURN):
            self._step(module, trainer.optimizers[0], *next(batches), clip=trainer.gradient_clip_val)
        self._turn_start = time.perf_counter()
        self.bare.append(1000 * (self._turn_start - start) / TURN)

    @staticmethod
    def _step(module: Any, optimizer: torch.optim.Optimizer, x: Any, y: Any, clip: float | None) -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(module.model(x), y).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(module.model.parameters(), clip)
        optimizer.step()


def measure(name: str, turns: int) -> dict[str, Any]:
    callback = Turns()
    fit = L.Trainer.fit

    def with_turns(trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        trainer.callbacks.append(callback)
        fit(trainer, *args, **kwargs)

    end = TURN * (turns + 2)
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"trainer.max_steps={end}", f"trainer.val_check_interval={end}", f"hydra.run.dir={folder}/run"]
        sys.argv = [str(CHECKOUT / "train.py"), *shape_overrides(SHAPES[name], name), "trainer=cpu", *settings]
        L.Trainer.fit = with_turns
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as error:
            if error.code:
                raise
        finally:
            L.Trainer.fit = fit
    pairs = list(zip(callback.bare[1:], callback.chargpt, strict=False))[1:]  # the first turn is warm-up
    row = {"shape": name, "turns": len(pairs)}
    row |= {"bare": statistics.median(a for a, _ in pairs), "chargpt": statistics.median(b for _, b in pairs)}
    row["added"] = statistics.median(b - a for a, b in pairs)
    row["ratio_low"], row["ratio"], row["ratio_high"] = statistics.quantiles((b / a for a, b in pairs), n=4)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20, help="number of measured turns, at least 2")
    args = parser.parse_args()
    print(f"train.py of {CHECKOUT}")
    rows = []
    for name in ("bigram", "gpt_nano"):
        with contextlib.redirect_stdout(sys.stderr):
            rows.append(measure(name, args.turns))
        print(
            "{shape}: {ratio} times a bare loop ({ratio_low} to {ratio_high} in the middle half of {turns} "
            "turns), {bare} and {chargpt} ms per step, {added} ms added".format(**rows[-1])
        )
        if ROOT.resolve() == CHECKOUT:
            write_rows(HERE / "overhead.csv", rows)


if __name__ == "__main__":
    main()
