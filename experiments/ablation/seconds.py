"""Measures the step time of each variant of the ablation, interleaved in one process; writes seconds.csv.

    python experiments/ablation/seconds.py           # three minutes on a quiet core

A step is forward pass, backward pass and optimizer step on one thread, as in the ablation's runs. In each round
every variant takes one step, in random order. The results are medians and ratios of medians.
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
from run import HERE, VARIANTS, overrides_of

from chargpt.config.instantiate import instantiate
from chargpt.model.loss import cross_entropy
from chargpt.utils.csv_io import write_rows

VOCAB_SIZE = 65
# Variants that do not change the step, or only change the schedule: their step time is that of the recipe.
NOT_MEASURED = ("cosine schedule", "decay over the last 20 %", "block warm-up of 100 steps", "EMA of the weights")


def make_step(overrides: list[str]) -> Callable[[], None]:
    """A function that takes one training step of a variant."""
    config = compose("train", overrides=["name=timed", *overrides])
    model = instantiate(OmegaConf.to_container(config.model, resolve=True), "model", vocab_size=VOCAB_SIZE)
    optimizer = instantiate(OmegaConf.to_container(config.optimizer, resolve=True), "optimizer")(model)
    blocks = torch.randint(VOCAB_SIZE, (config.data.batch_size, config.model.block_size + 1))

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
        steps = {name: make_step(overrides_of(name)) for name in VARIANTS if name not in NOT_MEASURED}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name in random.Random(number).sample(list(steps), len(steps)):
            start = time.perf_counter()
            steps[name]()
            if number > 1:  # the first two rounds warm up
                times[name].append(time.perf_counter() - start)
    recipe = statistics.median(next(iter(times.values())))
    rows = []
    for name, seconds in times.items():
        median = statistics.median(seconds)
        rows.append({"variant": name, "ms": f"{1000 * median:.1f}", "relative to the recipe": f"{median / recipe:.3f}"})
        print(*rows[-1].values(), sep="\t")
    write_rows(HERE / "seconds.csv", rows)


if __name__ == "__main__":
    main()
