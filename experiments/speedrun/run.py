"""Repeats the record of a track with several seeds, and nanoGPT on the same machine; writes TRACK.csv.

    python experiments/speedrun/run.py laptop --nanogpt ../nanoGPT
    python experiments/speedrun/run.py cpu --seeds 3

Each run is `python train.py speedrun=TRACK seed=...` in runs/TRACK/SEED; an interrupted run resumes, a finished one is
skipped. The target is reached if the mean loss of the last step is at or below it with p < 0.05 (one-sided t-test).
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from nanogpt import train
from scipy.stats import ttest_1samp

from chargpt.runs.record import read_finished
from chargpt.utils.csv_io import write_rows

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TARGETS = {"laptop": 1.88, "cpu": 1.48, "gpu": 1.48, "lowest": 1.44}
NANOGPT_SETTINGS = {"laptop": "laptop", "gpu": "gpu"}  # tracks for which nanoGPT's settings have the same target
KEYS = ("seed", "final_val_loss", "train_seconds", "compilation_seconds", "steps", "parameters")


def run_chargpt(track: str, seed: int, overrides: list[str]) -> dict[str, float]:
    folder = HERE / "runs" / track / str(seed)
    command = [sys.executable, str(ROOT / "train.py"), f"speedrun={track}", f"seed={seed}", "resume=auto"]
    subprocess.run([*command, f"hydra.run.dir={folder}", *overrides], check=True, stdout=subprocess.DEVNULL)
    metrics = read_finished(folder).metrics
    return {"who": "chargpt"} | {key: metrics[key] for key in KEYS}


def run_nanogpt(track: str, seed: int, checkout: Path) -> dict[str, float]:
    return {"who": "nanogpt", "seed": seed} | train(checkout, NANOGPT_SETTINGS[track], seed)


def summary(rows: list[dict], target: float) -> str:
    """The mean loss, its spread, p, and the seconds, in one line."""
    losses = [row["final_val_loss"] for row in rows]
    seconds = statistics.mean(row["train_seconds"] for row in rows)
    spread = f" ± {statistics.stdev(losses):.4f}, p = {p_value(losses, target):.2g}" if len(losses) > 1 else ""
    seeds = f"{len(losses)} seed{'s' if len(losses) > 1 else ''}"
    return f"{statistics.mean(losses):.4f}{spread}, target {target}; {seeds}, {seconds:.1f} s each"


def p_value(losses: list[float], target: float) -> float:
    """The probability of losses this low or lower if the true mean were the target: a one-sided t-test."""
    return float(ttest_1samp(losses, target, alternative="less").pvalue)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("track", choices=list(TARGETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("overrides", nargs="*", help="further overrides of train.py")
    args = parser.parse_args()
    rows: list[dict] = []
    for seed in range(1, args.seeds + 1):
        new = [run_chargpt(args.track, seed, args.overrides)]
        if args.nanogpt and args.track in NANOGPT_SETTINGS:
            new.append(run_nanogpt(args.track, seed, args.nanogpt.resolve()))
        rows += new
        write_rows(HERE / f"{args.track}.csv", rows)
        print(*new, sep="\n", flush=True)
    for who in ("chargpt", "nanogpt"):
        if selected := [row for row in rows if row["who"] == who]:
            print(f"{who}: {summary(selected, TARGETS[args.track])}")


if __name__ == "__main__":
    main()
