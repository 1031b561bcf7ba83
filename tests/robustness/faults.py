"""Interrupts training runs at random places, resumes each, and compares it with an uninterrupted run.

The places are drawn in advance: more than half of them inside training steps, a fifth while a checkpoint is written.
Each part of a run is a process of its own, `python train.py ... resume=auto`. The run uses dropout, two micro-batches
per step, and a tenth of Tiny Shakespeare.
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

from chargpt.config.raw_values import quote_value
from chargpt.data.corpus import TinyShakespeare
from chargpt.sweeps.markdown import put, table
from chargpt.utils.csv_io import read_rows, write_rows
from tests.robustness import full_disk
from tests.robustness.compare_runs import differences
from tests.robustness.fault_callback import AT_A_VALIDATION, AT_THE_END, IN_A_CHECKPOINT, IN_A_STEP

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

STEPS, EVERY = 300, 12  # optimizer steps, and steps between two validations
MODEL = ["model=gpt_nano", "model.n_layer=3", "model.n_head=2", "model.n_embd=64", "model.block_size=32"]
RUN = [*MODEL, "model.dropout=0.2", "data.batch_size=8", "trainer.accumulate_grad_batches=2", "trainer=cpu"]
RUN += [f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={EVERY}", "trainer.log_every_n_steps=5"]
RUN += ["callbacks.samples.max_new_tokens=40"]
# kind -> signal, number of processes, expected exit code
KINDS = {
    "kill": ("SIGKILL", 1, -9),
    "term": ("SIGTERM", 1, 3),
    "ddp-kill": ("SIGKILL", 2, 1),
    "ddp-term": ("SIGTERM", 2, 3),
}
ALL = [*KINDS, "disk"]
# 12 of these 19 places are in a step, 4 in the writing of a checkpoint.
PLACES = [*IN_A_STEP, "writing", *IN_A_STEP, "written", *IN_A_STEP, "validation", "renamed", *IN_A_STEP, "history"]
PLACES += ["writing", AT_THE_END]


def draw_faults(count: int, seed: int, processes: int) -> list[tuple[str, int, int]]:
    """Returns place, step and rank of each fault, at most one per step, in order of the steps."""
    rng = random.Random(seed)
    places = list(islice(cycle(PLACES), count))
    validations = sum(place in AT_A_VALIDATION for place in places)
    at_validations = rng.sample(range(EVERY, STEPS, EVERY), validations)
    others = sorted(set(range(2, STEPS)) - set(range(0, STEPS, EVERY)))
    in_steps = rng.sample(others, len(places) - validations)
    faults = []
    for place in places:
        step = (at_validations if place in AT_A_VALIDATION else in_steps).pop()
        rank = rng.randrange(processes) if place not in ("history", *IN_A_CHECKPOINT) else 0
        faults.append((place, STEPS if place == AT_THE_END else step, rank))
    ends = [fault for fault in faults if fault[0] == AT_THE_END][:1]
    return sorted((fault for fault in faults if fault[0] != AT_THE_END), key=lambda fault: fault[1]) + ends


def train(run: Path, overrides: list[str]) -> subprocess.CompletedProcess:
    """Starts the run in `run`, or resumes it."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    directory = f"hydra.run.dir={quote_value(str(run))}"
    command = [sys.executable, str(ROOT / "train.py"), *overrides, "resume=auto", directory]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def inject_faults(kind: str, args: argparse.Namespace, run: Path, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """Runs up to each fault in turn; yields a row of faults.csv for each."""
    signal_name, processes, exit_code = KINDS[kind]
    run.parent.mkdir()
    log_file = run.parent / "faults.jsonl"
    for number, (place, step, rank) in enumerate(draw_faults(args.cuts, args.seed, processes), 1):
        log_file.write_text("")
        settings = {"_target_": "tests.robustness.fault_callback.FaultCallback", "place": place, "step": step}
        settings |= {"signal_name": signal_name, "rank": rank, "log_file": log_file}
        callback = [f"+callbacks.fault.{key}={value}" for key, value in settings.items()]
        process = train(run, [*overrides, *callback])
        record = json.loads(log_file.read_text() or "{}")
        expected = record and process.returncode == exit_code and "Traceback" not in process.stderr
        yield {"fault": number, "place": place, "step": step, "rank": rank} | {
            "detail": record.get("detail", "not reached"),
            "exit code": process.returncode,
            "as expected": "yes" if expected else f"no: {process.stderr.strip().splitlines()[-1:]}",
        }


def summary(rows: list[dict[str, Any]]) -> str:
    lines = []
    for kind in [kind for kind in ALL if any(row["kind"] == kind for row in rows)]:
        *faults, complete = [row for row in rows if row["kind"] == kind]
        groups = {"in steps": IN_A_STEP, "in checkpoints": IN_A_CHECKPOINT}
        counts = {name: str(sum(row["place"] in places for row in faults)) for name, places in groups.items()}
        survived = sum(row["as expected"] == "yes" for row in faults)
        equal = {"equal to the uninterrupted run": complete["as expected"]}
        lines.append({"kind": kind, "faults": str(len(faults)), **counts, "survived": str(survived)} | equal)
    return table(lines)


def main(args: argparse.Namespace) -> int:
    folder = args.folder.absolute() / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True)
    text = folder / "tenth.txt"
    text.write_text(TinyShakespeare().read()[:111_539])
    kinds = args.kinds or ALL
    rows: list[dict[str, Any]] = [row for row in read_rows(HERE / "faults.csv") if row["kind"] not in kinds]
    uninterrupted: dict[int, Path] = {}  # by number of processes
    for kind in kinds:
        processes = KINDS[kind][1] if kind in KINDS else 1
        overrides = [*RUN, "data=text_file", f"data.path={text}", f"trainer.devices={processes}"]
        if processes not in uninterrupted:
            uninterrupted[processes] = folder / f"uninterrupted_{processes}"
            process = train(uninterrupted[processes], overrides)
            assert process.returncode == 0, process.stderr
        with full_disk.small_disk(folder / kind) if kind == "disk" else nullcontext():
            run = folder / kind / "run"
            if kind == "disk":
                faults = full_disk.fill_disk(run, overrides, train)
            else:
                faults = inject_faults(kind, args, run, overrides)
            for row in faults:
                rows.append({"kind": kind} | row)
                print(rows[-1], flush=True)
            process = train(run, overrides)
            different = [process.stderr] if process.returncode else differences(run, uninterrupted[processes])
        complete = {"kind": kind, "fault": "", "place": "complete run", "step": STEPS, "rank": ""}
        complete |= {"detail": "; ".join(different), "exit code": process.returncode}
        rows.append(complete | {"as expected": "no" if different else "yes"})
        print(rows[-1], flush=True)
    write_rows(HERE / "faults.csv", rows)
    put(HERE / "README.md", "faults", summary(rows))
    return int(any(row["as expected"] != "yes" for row in rows if row["kind"] in kinds))
