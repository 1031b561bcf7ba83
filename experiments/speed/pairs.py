"""A training step of chargpt against nanoGPT's and against a bare loop, in interleaved pairs; writes pairs.csv.

git clone https://github.com/karpathy/nanoGPT
python experiments/speed/pairs.py --nanogpt nanoGPT
"""

import argparse
import statistics
from pathlib import Path

from one import SHAPES, measure, write

# What is compared: (shape, steps, against whom).
QUESTIONS = (
    ("gpt_nano", 300, "nanogpt"),
    ("gpt_small", 6, "nanogpt"),
    ("bigram", 3000, "bare"),
    ("gpt_nano", 300, "bare"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    checkout, rows = args.nanogpt.resolve(), []
    for shape, steps, other in QUESTIONS:
        for pair in range(args.pairs):
            row = {"shape": shape, "against": other, "pair": pair, "device": args.device}
            for who in (other, "chargpt"):
                found = measure(who, SHAPES[shape], shape, steps, args.device, checkout)
                name = "ours" if who == "chargpt" else "theirs"
                row |= {f"{name}_ms": found["milliseconds"], f"{name}_mib": found["peak_mib"]}
            rows.append(row)
            print(row, flush=True)
            write("pairs.csv", rows)
        mine = [row for row in rows if (row["shape"], row["against"]) == (shape, other)]
        ratios = [row["ours_ms"] / row["theirs_ms"] for row in mine]
        more = statistics.median(row["ours_ms"] - row["theirs_ms"] for row in mine)
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{shape} against {other}: {statistics.median(ratios):.3f} ({spread}), {more:+.2f} ms", flush=True)


if __name__ == "__main__":
    main()
