"""Measures speculative sampling with trained models, in characters per second; writes speculative.csv.

    python train.py name=nano model=gpt_nano hydra.run.dir=outputs/nano
    python train.py model=gpt_modern hydra.run.dir=outputs/modern
    python train.py hydra.run.dir=outputs/minute
    python train.py model=gpt_small trainer.max_steps=500 data.batch_size=16 hydra.run.dir=outputs/small
    python experiments/speed/speculative.py outputs/nano outputs/modern outputs/minute outputs/small --nanogpt nanoGPT

The models must be trained: how many drafts an untrained one accepts says nothing. nanoGPT has random weights of the
same shape, which do not change its speed. All programs alternate.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from one import HERE
from sampling import nanogpt_model

from chargpt.data.tokenizer import encode
from chargpt.inference import generate as module
from chargpt.inference.generate import generate
from chargpt.inference.pretrained import PretrainedModel, load
from chargpt.inference.speculative import SpeculativeSampler
from chargpt.utils.csv_io import write_rows
from chargpt.utils.memory import disable_malloc_trim
from chargpt.utils.processor import processor_name

CHARACTERS = 500


def programs(trained: PretrainedModel, texts: int, checkout: Path | None) -> dict[str, Callable[[], object]]:
    model, prompt_T = trained.model, encode(trained.tokenizer, "\n").long()

    def sample(**settings) -> list[torch.Tensor]:
        return list(generate(model, prompt_T, CHARACTERS, num_samples=texts, **settings))

    compared: dict[str, Callable[[], object]] = {
        "plain": sample,
        "speculative": lambda: sample(draft=trained.draft),
        "int8": lambda: sample(quantize="int8"),
        "speculative_int8": lambda: sample(quantize="int8", draft=trained.draft),
    }
    if checkout is not None and texts == 1:
        config = trained.config["model"]
        sizes = {key: config[key] for key in ("n_layer", "n_head", "n_embd")}
        theirs = nanogpt_model(checkout, config["block_size"], **sizes)
        compared = {"nanogpt": lambda: theirs.generate(prompt_T[None], CHARACTERS), **compared}
    return compared


def characters_per_pass(trained: PretrainedModel, texts: int) -> float:
    passes, extend, prompt_T = [], SpeculativeSampler._extend, encode(trained.tokenizer, "\n")

    def count(self: SpeculativeSampler) -> list[list[int]]:
        passes.append(1)
        return extend(self)

    SpeculativeSampler._extend = count
    try:
        list(generate(trained.model, prompt_T, CHARACTERS, num_samples=texts, draft=trained.draft))
    finally:
        SpeculativeSampler._extend = extend
    return CHARACTERS / len(passes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    disable_malloc_trim()
    module.MAX_TEXTS = max(args.texts)  # measures more texts at once than are sampled with drafts by default
    rows = []
    for run in args.runs:
        trained = load(run)
        assert trained.draft is not None, f"{run} has no draft model"
        for texts in args.texts:
            compared = programs(trained, texts, args.nanogpt)
            speeds: dict[str, list[float]] = {name: [] for name in compared}
            for _ in range(args.rounds):
                for name, sample in compared.items():
                    start = time.perf_counter()
                    sample()
                    speeds[name].append(texts * CHARACTERS / (time.perf_counter() - start))
            row = {"model": trained.config["name"], "steps": trained.step, "texts": texts}
            row |= {name: round(statistics.median(values), 1) for name, values in speeds.items()}
            row["characters_per_pass"] = round(characters_per_pass(trained, texts), 2)
            for base in ("plain", "nanogpt"):
                if base in speeds:
                    ratios = [a / b for a, b in zip(speeds["speculative"], speeds[base], strict=True)]
                    row[f"speculative/{base}"] = round(statistics.median(ratios), 2)
            rows.append(row | {"processor": processor_name(), "threads": torch.get_num_threads()})
            print(row, flush=True)
            columns = dict.fromkeys(key for row in rows for key in row)
            write_rows(HERE / "speculative.csv", [{key: row.get(key, "") for key in columns} for row in rows])


if __name__ == "__main__":
    main()
