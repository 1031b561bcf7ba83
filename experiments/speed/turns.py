"""Compares training steps in turns within one process: nanoGPT, version 0.2.0, float32 and `precision=fastest`.

    git clone https://github.com/karpathy/nanoGPT
    python experiments/speed/turns.py --nanogpt nanoGPT      # the default, gpt_nano and gpt_small -> turns.csv
    python experiments/speed/turns.py --shapes gpt_modern    # without nanoGPT; printed only

Each program has its own weights and optimizer and trains on the same batches in a bare loop. Two processes of the same
program differ by up to 10 %, depending on their memory layout, and a machine's speed changes within minutes: turns of a
few steps within one process are compared with each other only. Version 0.2.0 is read from the history of the
repository.
"""

import argparse
import importlib
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from one import HERE, ROOT, SHAPES, SIZES, _tokens, shape_overrides
from torch import Tensor

from chargpt.config.instantiate import instantiate
from chargpt.data.dataloader import RandomBlockLoader
from chargpt.model.kernels.cpu_dtypes import CPUDtypes, set_cpu_dtypes
from chargpt.model.loss import cross_entropy
from chargpt.training.cpu_precision import CPUPrecision, fastest_dtypes
from chargpt.utils.csv_io import write_rows
from chargpt.utils.memory import disable_malloc_trim
from chargpt.utils.processor import processor_name

EARLIER = "557f2bf41f43b9bb6ccd028a35aea37db53f4aee"  # version 0.2.0
MODERN = {"gpt_modern": dict(n_layer=4, n_head=2, n_embd=128, block_size=128, batch_size=12, dropout=0.0)}
STEPS = {"gpt_modern": 8, "gpt_nano": 20, "gpt_small": 1}  # of a turn
Step = Callable[[Tensor, Tensor], None]


def overrides(name: str) -> list[str]:
    return ["model=gpt_modern"] if name == "gpt_modern" else shape_overrides(SHAPES[name], name)


def composed(folder: Path, name: str) -> dict[str, Any]:
    """The model and the optimizer in the configs of a checkout, and the limit of the gradient norm."""
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose("train", overrides(name))
        parts = OmegaConf.to_container(OmegaConf.masked_copy(config, ["model", "optimizer"]), resolve=True)
    assert isinstance(parts, dict)
    return {"clip": config.trainer.gradient_clip_val, **parts}


def make_step(model: Any, optimizer: torch.optim.Optimizer, clip: float | None, dtypes: CPUDtypes | None) -> Step:
    precision = CPUPrecision()

    def step(x_BT: Tensor, y_BT: Tensor) -> None:
        set_cpu_dtypes(dtypes)
        optimizer.zero_grad(set_to_none=True)
        with precision.forward_context():
            loss = cross_entropy(model(x_BT), y_BT)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()

    return step


def current(name: str, dtypes: CPUDtypes | None) -> Step:
    config = composed(ROOT / "conf", name)
    model = instantiate(config["model"], "model", vocab_size=65)
    return make_step(model, instantiate(config["optimizer"], "optimizer")(model), config["clip"], dtypes)


def earlier(name: str, folder: Path) -> Step:
    """Version 0.2.0 in this process: its modules replace those of the same names until everything is imported."""

    def remove_modules() -> dict[str, Any]:
        return {key: sys.modules.pop(key) for key in list(sys.modules) if key.partition(".")[0] == "chargpt"}

    source = subprocess.run(["git", "-C", ROOT, "archive", EARLIER, "src", "conf"], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(source.stdout)) as archive:
        archive.extractall(folder, filter="data")
    config, modules = composed(folder / "conf", name), remove_modules()
    sys.path.insert(0, str(folder / "src"))
    try:
        build = importlib.import_module("chargpt.config.build").build
        model = build(config["model"], "model", vocab_size=65)
        step = make_step(model, build(config["optimizer"], "optimizer")(model), config["clip"], None)
        tokens_BT = torch.zeros(2, 8, dtype=torch.long)
        step(tokens_BT, tokens_BT)  # imports what is imported on first use
    finally:
        remove_modules()
        sys.modules.update(modules)
        sys.path.remove(str(folder / "src"))
    return step


def nanogpt(name: str, checkout: Path) -> Step:
    sys.path.insert(0, str(checkout))
    from model import GPT, GPTConfig  # noqa: PLC0415 - nanoGPT's module, in the checkout

    model = GPT(GPTConfig(vocab_size=65, bias=False, **{key: SHAPES[name][key] for key in SIZES}))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")

    def step(x_BT: Tensor, y_BT: Tensor) -> None:
        _, loss = model(x_BT.contiguous(), y_BT.contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def compare(name: str, programs: dict[str, Step], turns: int) -> dict[str, list[float]]:
    """The milliseconds per step of each program, turn by turn; the first turn is not counted."""
    shape = (SHAPES | MODERN)[name]
    batches = iter(RandomBlockLoader(_tokens(), shape["block_size"], shape["batch_size"], seed=1337))
    times: dict[str, list[float]] = {program: [] for program in programs}
    for turn in range(turns + 1):
        turn_batches = [next(batches) for _ in range(STEPS[name] + 1)]
        for program, step in programs.items():
            step(*turn_batches[0])  # its data is not in the cache yet
            start = time.perf_counter()
            for batch in turn_batches[1:]:
                step(*batch)
            if turn:
                times[program].append(1000 * (time.perf_counter() - start) / STEPS[name])
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--shapes", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    disable_malloc_trim()
    dtypes = fastest_dtypes()
    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {dtypes}", flush=True)
    rows = []
    for name in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            programs = {"0.2.0": earlier(name, Path(folder))}
        if args.nanogpt and name in SHAPES:
            programs["nanogpt"] = nanogpt(name, args.nanogpt.resolve())
        programs |= {"float32": current(name, None), "fastest": current(name, dtypes)}
        times = compare(name, programs, args.turns)
        medians = {program: statistics.median(values) for program, values in times.items()}
        row = {"shape": name, **{f"{program}_ms": round(ms, 2) for program, ms in medians.items()}}
        for base in ("0.2.0", "nanogpt"):
            for program in ("float32", "fastest") if base in times else ():
                ratios = sorted(a / b for a, b in zip(times[program], times[base], strict=True))
                middle = statistics.median(ratios)
                row[f"{program}/{base}"] = round(middle, 3)
                spread = f"{ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}"
                print(f"{name}: {program} takes {middle:.3f} of the time of {base} (half the turns: {spread})")
        print(row, flush=True)
        rows.append(row | {"processor": processor_name(), "torch": torch.__version__})
    if args.nanogpt and len(rows) == len(STEPS):
        columns = dict.fromkeys(key for row in rows for key in row)
        write_rows(HERE / "turns.csv", [{key: row.get(key, "") for key in columns} for row in rows])


if __name__ == "__main__":
    main()
