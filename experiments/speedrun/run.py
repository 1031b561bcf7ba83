"""Repeats the record of a track, several seeds, and nanoGPT beside it on the same machine; writes TRACK.csv.

    python experiments/speedrun/run.py laptop --nanogpt ../nanoGPT
    python experiments/speedrun/run.py cpu --seeds 3

Each run is `python train.py +speedrun=TRACK seed=...` in runs/TRACK/SEED, and goes on, or is skipped, where it
stands. A track is won when the mean loss of the last step is at or below the target, p < 0.05 (one-sided t-test).
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
BESIDE = {"laptop": "laptop", "gpu": "gpu"}  # whose settings of nanoGPT's reach the same target
KEYS = ("seed", "final_val_loss", "train_seconds", "compilation_seconds", "steps", "parameters")


def ours(track: str, seed: int, words: list[str]) -> dict[str, float]:
    folder = HERE / "runs" / track / str(seed)
    command = [sys.executable, str(ROOT / "train.py"), f"+speedrun={track}", f"seed={seed}", "resume=auto"]
    subprocess.run([*command, f"hydra.run.dir={folder}", *words], check=True, stdout=subprocess.DEVNULL)
    metrics = read_finished(folder).metrics
    return {"who": "chargpt"} | {key: metrics[key] for key in KEYS}


def theirs(track: str, seed: int, checkout: Path) -> dict[str, float]:
    return {"who": "nanogpt", "seed": seed} | train(checkout, BESIDE[track], seed)


def decision(rows: list[dict], target: float) -> str:
    """In a line: the mean loss, its spread, p, and the seconds."""
    losses = [row["final_val_loss"] for row in rows]
    seconds = statistics.mean(row["train_seconds"] for row in rows)
    spread = f" ± {statistics.stdev(losses):.4f}, p = {p_value(losses, target):.2g}," if len(losses) > 1 else ""
    seeds = f"{len(losses)} seed{'s' if len(losses) > 1 else ''}"
    return f"{statistics.mean(losses):.4f}{spread} for {target} or less; {seeds}, {seconds:.1f} s each"


def p_value(losses: list[float], target: float) -> float:
    """How likely losses this low or lower are, if the true mean were above the target."""
    return float(ttest_1samp(losses, target, alternative="less").pvalue)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("track", choices=list(TARGETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("words", nargs="*", help="further words for train.py")
    args = parser.parse_args()
    rows: list[dict] = []
    for seed in range(1, args.seeds + 1):
        new = [ours(args.track, seed, args.words)]
        if args.nanogpt and args.track in BESIDE:
            new.append(theirs(args.track, seed, args.nanogpt.resolve()))
        rows += new
        write_rows(HERE / f"{args.track}.csv", rows)
        print(*new, sep="\n", flush=True)
    for who in ("chargpt", "nanogpt"):
        if mine := [row for row in rows if row["who"] == who]:
            print(f"{who}: {decision(mine, TARGETS[args.track])}")


if __name__ == "__main__":
    main()
