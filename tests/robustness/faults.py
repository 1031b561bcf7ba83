"""Cuts runs off wherever it hurts, goes on with each, and compares it with the run that was never cut.

    python experiments/torture/run.py                      # every kind; writes torture.csv and README.md's table
    python experiments/torture/run.py kill --cuts 100 --seed 7

The places are drawn in advance: more than half of them inside training steps, a fifth inside a checkpoint's
writing. Each part of a run is a process of its own, `python train.py ... resume=auto`, as a person would type it.
The run has dropout, two passes a step, and a tenth of Tiny Shakespeare to learn.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import disk
from cut import AT_A_VALIDATION, AT_THE_END, IN_A_CHECKPOINT, IN_A_STEP
from same import differences

from chargpt.config.overrides import quote_value
from chargpt.data.corpus import TinyShakespeare
from chargpt.sweeps.markdown import put, table
from chargpt.utils.csv_io import read_rows, write_rows

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

STEPS, EVERY = 300, 12  # optimizer steps, and between two validations
MODEL = ["model=gpt_nano", "model.n_layer=3", "model.n_head=2", "model.n_embd=64", "model.block_size=32"]
RUN = [*MODEL, "model.dropout=0.2", "data.batch_size=8", "trainer.accumulate_grad_batches=2", "trainer=cpu"]
RUN += [f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={EVERY}", "trainer.log_every_n_steps=5"]
RUN += ["callbacks.samples.max_new_tokens=40"]
# kind -> signal, processes, how the cut part ends
KINDS = {
    "kill": ("SIGKILL", 1, -9),
    "term": ("SIGTERM", 1, 3),
    "ddp-kill": ("SIGKILL", 2, 1),
    "ddp-term": ("SIGTERM", 2, 3),
}
ALL = [*KINDS, "disk"]
# The order in which places are given out: of 20, 12 are in a step, 5 in a checkpoint's writing, 1 in a validation.
TURNS = [*IN_A_STEP, "writing", *IN_A_STEP, "written", *IN_A_STEP, "validation", "renamed", *IN_A_STEP, "history"]
TURNS += ["writing", AT_THE_END]


def draw(cuts: int, seed: int, processes: int) -> list[tuple[str, int, int]]:
    """Place, step and rank of each cut, no two at one step, in the order of the steps."""
    dice = random.Random(seed)
    places = list(islice(cycle(TURNS), cuts))
    validations = sum(place in AT_A_VALIDATION for place in places)
    at_validations = dice.sample(range(EVERY, STEPS, EVERY), validations)
    others = sorted(set(range(2, STEPS)) - set(range(0, STEPS, EVERY)))
    in_steps = dice.sample(others, len(places) - validations)
    drawn = []
    for place in places:
        step = (at_validations if place in AT_A_VALIDATION else in_steps).pop()
        rank = dice.randrange(processes) if place not in ("history", *IN_A_CHECKPOINT) else 0
        drawn.append((place, STEPS if place == AT_THE_END else step, rank))
    ends = [one for one in drawn if one[0] == AT_THE_END][:1]
    return sorted((one for one in drawn if one[0] != AT_THE_END), key=lambda one: one[1]) + ends


def part(folder: Path, words: list[str]) -> subprocess.CompletedProcess:
    """One process: a part of the run in `folder`."""
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    place = f"hydra.run.dir={quote_value(str(folder))}"
    command = [sys.executable, str(ROOT / "train.py"), *words, "resume=auto", place]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def tortured(kind: str, args: argparse.Namespace, home: Path, words: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each cut as it happens; the run is `home`."""
    name, processes, code = KINDS[kind]
    home.parent.mkdir()
    log = home.parent / "cuts.jsonl"
    for number, (place, step, rank) in enumerate(draw(args.cuts, args.seed, processes), 1):
        log.write_text("")
        settings = {"place": place, "step": step, "name": name, "rank": rank, "log": log}
        cut = [
            "+callbacks.cut._target_=cut.Cut",
            *(f"+callbacks.cut.{key}={value}" for key, value in settings.items()),
        ]
        done = part(home, [*words, *cut])
        landed = json.loads(log.read_text() or "{}")
        good = landed and done.returncode == code and "Traceback" not in done.stderr
        yield {"cut": number, "place": place, "step": step, "rank": rank} | {
            "where": landed.get("detail", "it never came"),
            "exit code": done.returncode,
            "as it should": "yes" if good else f"no: {done.stderr.strip().splitlines()[-1:]}",
        }


def summary(rows: list[dict[str, Any]]) -> str:
    lines = []
    for kind in [kind for kind in ALL if any(row["kind"] == kind for row in rows)]:
        *cuts, whole = [row for row in rows if row["kind"] == kind]
        inside = {"in steps": IN_A_STEP, "in checkpoints": IN_A_CHECKPOINT}
        counts = {name: str(sum(row["place"] in places for row in cuts)) for name, places in inside.items()}
        survived = sum(row["as it should"] == "yes" for row in cuts)
        equal = {"equal to the uncut run": whole["as it should"]}
        lines.append({"kind": kind, "faults": str(len(cuts)), **counts, "survived": str(survived)} | equal)
    return table(lines)


def of_other_kinds(kinds: list[str]) -> list[dict[str, Any]]:
    """What was measured before."""
    return [row for row in read_rows(HERE / "torture.csv") if row["kind"] not in kinds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(ALL)}; all if none is named")
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=HERE / "runs", help="for the runs; a new one each time")
    args = parser.parse_args()
    folder = args.folder.absolute() / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True)
    text = folder / "tenth.txt"
    text.write_text(TinyShakespeare().read()[:111_539])
    kinds = args.kinds or ALL
    rows, whole = of_other_kinds(kinds), {}
    for kind in kinds:
        processes = KINDS[kind][1] if kind in KINDS else 1
        words = [*RUN, "data=text_file", f"data.path={text}", f"trainer.devices={processes}"]
        if processes not in whole:
            whole[processes] = folder / f"uncut_{processes}"
            done = part(whole[processes], words)
            assert done.returncode == 0, done.stderr
        with disk.small(folder / kind) if kind == "disk" else nullcontext():
            home = folder / kind / "run"
            parts = disk.filled(home, words, part) if kind == "disk" else tortured(kind, args, home, words)
            for row in parts:
                rows.append({"kind": kind} | row)
                print(rows[-1], flush=True)
            last = part(home, words)
            different = [last.stderr] if last.returncode else differences(home, whole[processes])
        end = {
            "kind": kind,
            "cut": "",
            "place": "the whole",
            "step": STEPS,
            "rank": "",
            "where": "; ".join(different),
        }
        rows.append(end | {"exit code": last.returncode, "as it should": "no" if different else "yes"})
        print(rows[-1], flush=True)
    write_rows(HERE / "torture.csv", rows)
    put(HERE / "README.md", "torture", summary(rows))


if __name__ == "__main__":
    main()
