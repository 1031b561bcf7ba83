"""Sends Ctrl-C or SIGTERM at random moments to a run on a long text, and compares it with an uninterrupted run.

The text has 50 million characters, so that validations take most of the time. The moments are drawn in seconds after
the start of training; each part of the run is a process of its own, `python train.py ... resume=auto`.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chargpt.config.raw_values import quote_value
from chargpt.data.corpus import TinyShakespeare
from chargpt.sweeps.markdown import put, table
from chargpt.utils.csv_io import write_rows
from tests.robustness.compare_runs import differences

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHARACTERS = 50_000_000
LIMIT_SECONDS = 5.0  # from the signal to the exit
RUN = ["model=gpt_nano", "trainer=cpu", "trainer.max_steps=2000", "trainer.val_check_interval=100"]
RUN += ["callbacks.samples.max_new_tokens=40"]


def start(run: Path, text: Path) -> subprocess.Popen:
    """Starts or resumes the run, and returns when it trains."""
    directory = f"hydra.run.dir={quote_value(str(run))}"
    data = ["data=text_file", f"data.path={text}"]
    command = [sys.executable, str(ROOT / "train.py"), *RUN, *data, "resume=auto", directory]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.lstrip().startswith("val  on"):  # the last line of the header
            break
    return process


def finish(process: subprocess.Popen) -> str:
    """Waits for the end; returns what was written to stderr since `start`."""
    assert process.stderr is not None
    with process.stderr as errors:
        return errors.read()


def main(args: argparse.Namespace) -> int:
    folder = args.folder.absolute() / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True)
    text = folder / "long.txt"
    once = TinyShakespeare().read()
    text.write_text((once * (CHARACTERS // len(once) + 1))[:CHARACTERS])
    began = time.monotonic()
    process = start(folder / "uninterrupted", text)
    finish(process)
    assert process.wait() == 0
    duration = time.monotonic() - began
    print(f"uninterrupted: {duration:.0f} s", flush=True)

    rng = random.Random(args.seed)
    run, rows = folder / "run", list[dict[str, Any]]()
    for number in range(1, args.cuts + 1):
        process = start(run, text)
        # A moment within a share of the run, so that the signals reach training, validations and the last validation.
        time.sleep(rng.uniform(0, 2 * duration / args.cuts))
        name = ("SIGINT", "SIGTERM")[number % 2]
        process.send_signal(signal.Signals[name])
        sent = time.monotonic()
        errors = finish(process)
        code = process.wait()
        seconds = time.monotonic() - sent
        expected = code == 3 and seconds <= LIMIT_SECONDS and "Traceback" not in errors
        moment = errors.rstrip().rpartition("interrupted ")[2].partition(". Resume")[0]
        rows.append({"signal": number, "name": name, "moment": moment, "seconds to exit": f"{seconds:.1f}"})
        rows[-1] |= {"exit code": code, "as expected": "yes" if expected else f"no: {errors.splitlines()[-1:]}"}
        print(rows[-1], flush=True)
        if code == 0:
            break
    process = start(run, text)
    finish(process)
    code = process.wait()
    different = [f"exit code {code}"] if code else differences(run, folder / "uninterrupted")
    print(different or "equal", flush=True)
    write_rows(HERE / "signals.csv", rows)
    longest = max(float(row["seconds to exit"]) for row in rows)
    survived = sum(row["as expected"] == "yes" for row in rows)
    cells = {"signals": str(len(rows)), "exit code 3 within 5 s": str(survived), "longest": f"{longest:.1f} s"}
    put(
        HERE / "README.md", "signals", table([cells | {"equal to the uninterrupted run": "no" if different else "yes"}])
    )
    return int(bool(different) or survived < len(rows))
