"""Measures how the time of a training step grows: with width and depth, with block size, and with model size.

    git clone https://github.com/karpathy/nanoGPT
    python experiments/speed/growth.py --nanogpt nanoGPT

Writes shapes.csv (width and depth: tokens/s of nanoGPT, a bare loop and train.py) and growth.csv (milliseconds and
memory of the bare loop); plot.py plots both.
"""

import argparse
from pathlib import Path

from one import HERE, SHAPES, measure

from chargpt.utils.csv_io import write_rows

HEAD_SIZE = 64


def make_shape(n_layer: int, n_embd: int, block_size: int, batch_size: int) -> dict:
    sizes = dict(n_layer=n_layer, n_embd=n_embd, n_head=max(1, n_embd // HEAD_SIZE))
    return SHAPES["gpt_small"] | sizes | dict(block_size=block_size, batch_size=batch_size, dropout=0.0)


# Width and depth, at 1024 tokens per step.
WIDTHS = [make_shape(6, n_embd, 128, 8) for n_embd in (64, 128, 256, 384, 512)]
DEPTHS = [make_shape(n_layer, 256, 128, 8) for n_layer in (2, 4, 8)]
# Growth: block sizes 64 to 4096 at 4096 tokens per step, models with 0.8M to 124M parameters at 1024.
BLOCKS = [make_shape(4, 128, block_size, 4096 // block_size) for block_size in (64, 128, 256, 512, 1024, 2048, 4096)]
MODELS = [make_shape(*shape, 256, 4) for shape in ((4, 128), (6, 192), (6, 384), (8, 512), (12, 768))]
MODELS[-1] |= dict(n_layer=17)  # with a vocabulary of 65 tokens, 17 layers have the 124M parameters of GPT-2's 12


def steps_for(shape: dict) -> int:
    """Enough steps for about a second at 200 GFLOP/s."""
    flops = 6 * 12 * shape["n_layer"] * shape["n_embd"] ** 2 * shape["block_size"] * shape["batch_size"]
    return max(2, min(200, int(2e11 / flops)))


def run(name: str, cases: list[tuple[str, dict, str]], checkout: Path, device: str) -> None:
    rows = []
    for vary, shape, who in cases:
        result = measure(who, shape, "gpt_small", steps_for(shape), device, checkout)
        tokens = shape["block_size"] * shape["batch_size"]
        row = {"vary": vary, **result, "tokens_per_second": round(1000 * tokens / result["milliseconds"])}
        rows.append(row)
        print(row, flush=True)
        write_rows(HERE / name, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    checkout = args.nanogpt.resolve()
    programs = ("nanogpt", "bare", "chargpt")
    shapes = [("width", shape, who) for shape in WIDTHS for who in programs]
    shapes += [("depth", shape, who) for shape in DEPTHS for who in programs]
    run("shapes.csv", shapes, checkout, args.device)
    growth = [("block size", shape, "bare") for shape in BLOCKS] + [("model", shape, "bare") for shape in MODELS]
    run("growth.csv", growth, checkout, args.device)


if __name__ == "__main__":
    main()
