"""What train.py adds to a step over a bare loop, in one process and on the same weights, in turns of 50 steps.

    python experiments/speed/overhead.py                               # bigram and gpt_nano -> overhead.csv
    PYTHONPATH=../before/src python experiments/speed/overhead.py      # the same of another checkout, printed only

Two processes of one program differ by up to 10 % on a small machine, by where their memory happens to lie; turns
within one process do not. All that train.py has on by default is on: loggers, progress bar, clock, checkpoints.
To compare two checkouts, run the two lines in turns, a few times each: a machine's speed changes within minutes.
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
from one import HERE, ROOT, SHAPES, words

import chargpt
from chargpt.model.loss import cross_entropy
from chargpt.utils.csv_io import write_rows

TURN = 50  # steps
TREE = Path(chargpt.__file__).resolve().parents[2]  # the checkout that is measured: train.py and conf/ are its own


class Turns(L.Callback):
    """Before each 50th step of Lightning's, 50 by hand; the seconds a step of both, turn by turn."""

    def __init__(self) -> None:
        self.theirs: list[float] = []  # ms a step, the bare loop's
        self.ours: list[float] = []
        self._since: float | None = None

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % TURN:
            return
        start = time.perf_counter()
        if self._since is not None:
            self.ours.append(1000 * (start - self._since) / TURN)
        batches = iter(trainer.train_dataloader)
        for _ in range(TURN):
            self._step(module, trainer.optimizers[0], *next(batches), clip=trainer.gradient_clip_val)
        self._since = time.perf_counter()
        self.theirs.append(1000 * (self._since - start) / TURN)

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
        sys.argv = [str(TREE / "train.py"), *words(SHAPES[name], name), "trainer=cpu", *settings]
        L.Trainer.fit = with_turns
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as left:
            if left.code:
                raise
        finally:
            L.Trainer.fit = fit
    pairs = list(zip(callback.theirs[1:], callback.ours, strict=False))[1:]  # the first turn warms up
    row = {"shape": name, "turns": len(pairs)}
    row |= {"bare": statistics.median(a for a, _ in pairs), "chargpt": statistics.median(b for _, b in pairs)}
    row["added"] = statistics.median(b - a for a, b in pairs)
    row["ratio_low"], row["ratio"], row["ratio_high"] = statistics.quantiles((b / a for a, b in pairs), n=4)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20, help="that count: 2 or more")
    args = parser.parse_args()
    print(f"train.py of {TREE}")
    rows = []
    for name in ("bigram", "gpt_nano"):
        with contextlib.redirect_stdout(sys.stderr):
            rows.append(measure(name, args.turns))
        print(
            "{shape}: {ratio} times a bare loop ({ratio_low} to {ratio_high} in the middle half of {turns} "
            "turns), {bare} and {chargpt} ms a step, {added} ms added".format(**rows[-1])
        )
        if ROOT.resolve() == TREE:
            write_rows(HERE / "overhead.csv", rows)


if __name__ == "__main__":
    main()
