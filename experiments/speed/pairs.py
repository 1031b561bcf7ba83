"""Compares a training step of chargpt and nanoGPT in interleaved pairs of processes; writes pairs.csv.

git clone https://github.com/karpathy/nanoGPT
python experiments/speed/pairs.py --nanogpt nanoGPT
"""

import argparse
import statistics
from pathlib import Path

from one import HERE, SHAPES, measure

from chargpt.utils.csv_io import write_rows

STEPS = {"gpt_nano": 300, "gpt_small": 6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    checkout, rows = args.nanogpt.resolve(), []
    for shape, steps in STEPS.items():
        for pair in range(args.pairs):
            row = {"shape": shape, "pair": pair, "device": args.device}
            for who, name in (("nanogpt", "theirs"), ("chargpt", "ours")):
                result = measure(who, SHAPES[shape], shape, steps, args.device, checkout)
                row |= {f"{name}_ms": result["milliseconds"], f"{name}_mib": result["peak_mib"]}
            rows.append(row)
            print(row, flush=True)
            write_rows(HERE / "pairs.csv", rows)
        ratios = [row["ours_ms"] / row["theirs_ms"] for row in rows if row["shape"] == shape]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{shape}: {statistics.median(ratios):.3f} ({spread})", flush=True)


if __name__ == "__main__":
    main()
