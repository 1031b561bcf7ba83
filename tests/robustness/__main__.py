"""The command line of the robustness suite: `python -m tests.robustness faults|signals|files|fuzz`."""

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

RUNS = Path(__file__).parent / "runs"
TEMPORARY = Path(tempfile.gettempdir())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description="The robustness suite of chargpt.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    faults = commands.add_parser("faults", help="interrupt training runs, resume them, compare with uninterrupted runs")
    faults.add_argument("kinds", nargs="*", metavar="KIND", help="kill, term, ddp-kill, ddp-term or disk; default: all")
    faults.add_argument("--cuts", type=int, default=20, help="number of faults per kind (default: 20)")
    faults.add_argument("--seed", type=int, default=1, help="seed of the points of interruption (default: 1)")
    faults.add_argument("--folder", type=Path, default=RUNS, help="parent of the directory that holds the runs")

    signals = commands.add_parser("signals", help="interrupt a run on a long text, resume it, compare it")
    signals.add_argument("--cuts", type=int, default=20, help="number of signals (default: 20)")
    signals.add_argument("--seed", type=int, default=1, help="seed of the moments (default: 1)")
    signals.add_argument("--folder", type=Path, default=RUNS, help="parent of the directory that holds the runs")

    files = commands.add_parser("files", help="load damaged, foreign and hostile checkpoints")
    files.add_argument(
        "--kinds", default="", help="comma-separated kinds to run; other rows of files.csv are kept (default: all)"
    )
    files.add_argument("--every", type=int, default=1, help="run every N-th checkpoint only, without writing files.csv")
    files.add_argument("--scratch", type=Path, default=TEMPORARY / "chargpt-files", help="directory of the cases")

    fuzz = commands.add_parser("fuzz", help="run commands with random settings, arguments and texts")
    fuzz.add_argument("--cases", type=int, default=2000, help="approximate number of cases (default: 2000)")
    fuzz.add_argument("--seed", type=int, default=0, help="seed of the cases (default: 0)")
    fuzz.add_argument(
        "--kinds", default="", help="comma-separated kinds to run, without writing fuzz.csv (default: all)"
    )
    fuzz.add_argument("--scratch", type=Path, default=TEMPORARY / "chargpt-fuzz", help="directory of the cases")

    args = parser.parse_args()
    if args.command is None:
        parser.print_help()
        return 0
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # read when numpy and torch are imported; the fork server must not start threads
    # Imported by name, so that the help does not wait for torch.
    return importlib.import_module(f"tests.robustness.{args.command}").main(args)


if __name__ == "__main__":
    sys.exit(main())
