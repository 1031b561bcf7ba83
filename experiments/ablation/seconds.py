"""What a step of each variant of the ablation takes, in turns within one process; writes seconds.csv.

    python experiments/ablation/seconds.py           # three minutes on a quiet core

A step is forward pass, backward pass and optimizer, on one thread, as the ablation's runs have it. In each round
every variant takes one step, in an order of its own; the figures are medians, and ratios of medians.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from run import HERE, VARIANTS

from chargpt.config.instantiate import instantiate
from chargpt.model.loss import cross_entropy
from chargpt.utils.csv_io import write_rows

VOCABULARY = 65
# What happens outside of these three, or to the schedule alone: a step takes what the recipe's takes.
OUTSIDE = ("cosine schedule", "decay over the last 20 %", "shorter blocks for 100 steps", "average of the weights")


def stepper(words: list[str]) -> Callable[[], None]:
    """Takes one training step of a variant."""
    config = compose("train", overrides=["name=timed", *words])
    model = instantiate(OmegaConf.to_container(config.model, resolve=True), "model", vocab_size=VOCABULARY)
    optimizer = instantiate(OmegaConf.to_container(config.optimizer, resolve=True), "optimizer")(model)
    blocks = torch.randint(VOCABULARY, (config.data.batch_size, config.model.block_size + 1))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(blocks[:, :-1]), blocks[:, 1:]).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3", job_name="train"):
        steppers = {name: stepper(words) for name, words in VARIANTS.items() if name not in OUTSIDE}
    taken: dict[str, list[float]] = {name: [] for name in steppers}
    for number in range(rounds + 2):
        for name in random.Random(number).sample(list(steppers), len(steppers)):
            began = time.perf_counter()
            steppers[name]()
            if number > 1:
                taken[name].append(time.perf_counter() - began)
    recipe = statistics.median(next(iter(taken.values())))
    rows = []
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        rows.append({"variant": name, "ms": f"{1000 * middle:.1f}", "of the recipe's": f"{middle / recipe:.3f}"})
        print(*rows[-1].values(), sep="\t")
    write_rows(HERE / "seconds.csv", rows)


if __name__ == "__main__":
    main()
