"""Compares sampling with nanoGPT's `generate`, in characters per second; writes sampling.csv.

git clone https://github.com/karpathy/nanoGPT
python experiments/speed/sampling.py --nanogpt nanoGPT
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from chargpt.config.instantiate import instantiate
from chargpt.inference.generate import generate
from chargpt.utils.csv_io import write_rows
from chargpt.utils.memory import disable_malloc_trim

HERE = Path(__file__).parent
CHARACTERS = 500


def chargpt_model(block_size: int) -> torch.nn.Module:
    with initialize_config_dir(str(HERE.parent.parent / "conf"), version_base="1.3"):
        config = compose("train", ["model=gpt_small", f"model.block_size={block_size}"])
    return instantiate(OmegaConf.to_container(config.model, resolve=True), "model", vocab_size=65).eval()


def nanogpt_model(
    checkout: Path, block_size: int, n_layer: int = 6, n_head: int = 6, n_embd: int = 384
) -> torch.nn.Module:
    sys.path.insert(0, str(checkout))
    from model import GPT, GPTConfig  # noqa: PLC0415 - nanoGPT's module, in the checkout

    sizes = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size)
    return GPT(GPTConfig(vocab_size=65, dropout=0.2, bias=False, **sizes)).eval()


def speed(sample, streams: int, characters: int) -> float:
    start = time.perf_counter()
    sample()
    return streams * characters / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    args = parser.parse_args()
    rows = []
    start = torch.zeros(1, dtype=torch.long)
    disable_malloc_trim()
    for block_size in args.blocks:
        chargpt, nanogpt = chargpt_model(block_size), nanogpt_model(args.nanogpt.resolve(), block_size)
        n = max(CHARACTERS, 2 * block_size)  # at least two blocks
        programs = {
            "nanogpt": (1, lambda: nanogpt.generate(start[None], n)),  # noqa: B023 - called in this iteration
            "chargpt": (1, lambda: list(generate(chargpt, start, n))),  # noqa: B023
            "chargpt_8": (8, lambda: list(generate(chargpt, start, n, num_samples=8))),  # noqa: B023
            "chargpt_int8": (1, lambda: list(generate(chargpt, start, n, quantize="int8"))),  # noqa: B023
            "chargpt_exact": (1, lambda: list(generate(chargpt, start, n, window="exact"))),  # noqa: B023
        }
        for round_number in range(args.rounds if block_size == 256 else 1):
            row = {"block_size": block_size, "characters": n, "round": round_number} | dict.fromkeys(programs, "")
            for name, (streams, sample) in programs.items():
                if name != "chargpt_exact" or block_size <= 256:
                    row[name] = round(speed(sample, streams, n), 1)
            rows.append(row)
            print(row, flush=True)
    write_rows(HERE / "sampling.csv", rows)
    compared = [row for row in rows if row["block_size"] == 256]
    for name in ("chargpt", "chargpt_8", "chargpt_int8"):
        ratios = [row[name] / row["nanogpt"] for row in compared]
        print(f"{name}: {statistics.median(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
