"""Runs one measurement in this process: milliseconds per training step and peak memory, as a line of JSON.

    python experiments/speed/one.py chargpt --shape gpt_nano --steps 200
    python experiments/speed/one.py nanogpt --shape gpt_small --steps 5 --nanogpt ../nanoGPT
    python experiments/speed/one.py bare --n_layer 6 --n_head 6 --n_embd 384 --block_size 256 --batch_size 16

`nanogpt` is nanoGPT's model and optimizer with batches made in its way; `bare` is a hand-written loop with chargpt's
model, dataloader and optimizer; `chargpt` is train.py with its defaults. The first steps are not counted. On a GPU
(`--device cuda`) all three are compiled and run in bfloat16.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from chargpt.config.instantiate import instantiate
from chargpt.data.corpus import TinyShakespeare
from chargpt.data.dataloader import RandomBlockLoader
from chargpt.data.tokenizer import CharTokenizer
from chargpt.model.loss import cross_entropy
from chargpt.utils.memory import disable_malloc_trim

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

SHAPES: dict[str, dict[str, Any]] = {
    "bigram": dict(block_size=8, batch_size=32),
    "gpt_nano": dict(n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12, dropout=0.0),
    "gpt_small": dict(n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=16, dropout=0.2),
}
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "dropout")


def shape_overrides(shape: dict[str, Any], name: str) -> list[str]:
    """The shape as overrides of train.py."""
    if name == "bigram":
        return ["model=bigram", f"data.batch_size={shape['batch_size']}"]
    choices = ["model=gpt_nano", "recipe=nanogpt_laptop"] if name == "gpt_nano" else ["model=gpt_small"]
    sizes = [f"model.{key}={shape[key]}" for key in SIZES]
    return [*choices, *sizes, f"data.batch_size={shape['batch_size']}", "trainer.gradient_clip_val=1.0"]


def nanogpt(shape: dict[str, Any], name: str, steps: int, device: str, checkout: Path) -> float:
    sys.path.insert(0, str(checkout))
    from model import GPT, GPTConfig  # noqa: PLC0415 - nanoGPT's module, in the checkout

    tokens_N = _tokens()
    model = GPT(GPTConfig(vocab_size=65, bias=False, **{key: shape[key] for key in SIZES})).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device)
    run = torch.compile(model) if device == "cuda" else model
    B, T = shape["batch_size"], shape["block_size"]

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(tokens_N) - T, (B,))
        x = torch.stack([tokens_N[i : i + T].long() for i in starts])
        y = torch.stack([tokens_N[i + 1 : i + 1 + T].long() for i in starts])
        return x.to(device), y.to(device)

    def step() -> None:
        x, y = batch()
        with _autocast(device):
            _, loss = run(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _timed(step, steps, device)


def bare(shape: dict[str, Any], name: str, steps: int, device: str, checkout: Path | None) -> float:
    disable_malloc_trim()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", shape_overrides(shape, name))
        config = OmegaConf.to_container(OmegaConf.masked_copy(config, ["model", "optimizer"]), resolve=True)
    model = instantiate(config["model"], "model", vocab_size=65).to(device)
    optimizer = instantiate(config["optimizer"], "optimizer")(model)
    batches = iter(RandomBlockLoader(_tokens().to(device), shape["block_size"], shape["batch_size"], seed=1337))

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model(x), y)

    run = torch.compile(loss_of, mode="reduce-overhead") if device == "cuda" else loss_of

    def step() -> None:
        x, y = next(batches)
        with _autocast(device):
            loss = run(x, y)
        loss.backward()
        if name != "bigram":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _timed(step, steps, device)


def chargpt(shape: dict[str, Any], name: str, steps: int, device: str, checkout: Path | None) -> float:
    """The time between the first and the last log point in history.csv."""
    every = max(1, steps // 2)
    end = 3 * every
    with tempfile.TemporaryDirectory() as folder:
        trainer = ["trainer=gpu", "trainer.compile=true"] if device == "cuda" else ["trainer=cpu"]
        settings = dict(max_steps=end, val_check_interval=end, log_every_n_steps=every)
        command = [sys.executable, str(ROOT / "train.py"), *shape_overrides(shape, name), *trainer]
        command += [f"trainer.{key}={value}" for key, value in settings.items()]
        subprocess.run([*command, f"hydra.run.dir={folder}/run"], check=True, capture_output=True)
        with (Path(folder) / "run" / "history.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["tokens_per_second"]]
    tokens = shape["batch_size"] * shape["block_size"]
    counted = [row for row in rows if int(row["step"]) > every]  # the first third is warm-up
    return sum(1000 * tokens / float(row["tokens_per_second"]) for row in counted) / len(counted)


def _tokens() -> torch.Tensor:
    text = TinyShakespeare().read()
    return CharTokenizer.from_text(text).encode(text[: int(0.9 * len(text))])


def _autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, dtype=torch.bfloat16) if device == "cuda" else nullcontext()


def _timed(step: Callable[[], None], steps: int, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(max(2, steps // 10)):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - start) / steps * 1000


def measure(who: str, shape: dict[str, Any], name: str, steps: int, device: str, checkout: Path | None) -> dict:
    """Runs this file in its own process, for use in other scripts."""
    sizes = [f"--{key}={value}" for key, value in shape.items()]
    command = [sys.executable, __file__, who, f"--shape={name}", f"--steps={steps}", f"--device={device}", *sizes]
    command += [f"--nanogpt={checkout}"] if checkout else []
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("who", choices=["nanogpt", "bare", "chargpt"])
    parser.add_argument("--shape", choices=list(SHAPES), default="gpt_small", help="defaults of the sizes")
    for key in ("n_layer", "n_head", "n_embd", "block_size", "batch_size"):
        parser.add_argument(f"--{key}", type=int)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    args = parser.parse_args()
    given = {key: getattr(args, key) for key in (*SIZES, "batch_size")}
    shape = SHAPES[args.shape] | {key: value for key, value in given.items() if value is not None}
    ms = {"nanogpt": nanogpt, "bare": bare, "chargpt": chargpt}[args.who](
        shape, args.shape, args.steps, args.device, args.nanogpt
    )
    processes = resource.RUSAGE_CHILDREN if args.who == "chargpt" else resource.RUSAGE_SELF
    peak = resource.getrusage(processes).ru_maxrss / 1024
    if args.device == "cuda" and args.who != "chargpt":
        peak = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({"who": args.who, **shape, "milliseconds": round(ms, 4), "peak_mib": round(peak)}))


if __name__ == "__main__":
    main()
