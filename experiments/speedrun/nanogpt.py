"""nanoGPT by its own train.py and with its own settings, scored by this bench's rules.

    python experiments/speedrun/nanogpt.py ../nanoGPT laptop --seed 1337

Its seconds are those that it prints for each step, and the median of these for a step at which it also evaluates
or saves. Its loss is that of its last checkpoint over the whole validation split, in blocks that do not overlap.
None of its code is kept here; it runs in a copy of the checkout, which is left as it is.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from chargpt.data.corpus import TinyShakespeare
from chargpt.data.tokenizer import CharTokenizer
from chargpt.model.loss import cross_entropy

# Its README's setting for a laptop; and its default for one GPU.
LAPTOP = dict(
    device="cpu", compile=False, block_size=64, batch_size=12, n_layer=4, n_head=4, n_embd=128, dropout=0.0
)
SETTINGS = {
    "laptop": LAPTOP | dict(max_iters=2000, lr_decay_iters=2000, eval_interval=1000),
    "gpu": dict(device="cuda", compile=True),
}


def train(checkout: Path, name: str, seed: int) -> dict[str, float]:
    """Trains it; gives `train_seconds`, `steps` and `final_val_loss`."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanoGPT"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "out*"))
        script = copy / "train.py"
        script.write_text(script.read_text().replace("manual_seed(1337", f"manual_seed({seed}"))
        (copy / "data/shakespeare_char/input.txt").write_text(TinyShakespeare().read())
        _run([sys.executable, "data/shakespeare_char/prepare.py"], copy)
        words = dict(SETTINGS[name], out_dir="out", always_save_checkpoint=True, eval_iters=20, log_interval=1)
        flags = [f"--{key}={value}" for key, value in words.items()]
        printed = _run([sys.executable, "train.py", "config/train_shakespeare_char.py", *flags], copy)
        steps = [(int(i), float(ms)) for i, ms in re.findall(r"iter (\d+): loss \S+, time (\S+)ms", printed)]
        every = int(re.search(r"eval_interval = (\d+)", printed)[1]) if "eval_interval" not in words else 1000
        usual = [ms for i, ms in steps if i % every]
        sys.path.insert(0, str(copy))
        return {
            "train_seconds": (sum(usual) + (len(steps) - len(usual)) * statistics.median(usual)) / 1000,
            "steps": len(steps) - 1,
            "final_val_loss": _loss(copy / "out" / "ckpt.pt"),
        }


@torch.no_grad()
def _loss(checkpoint: Path) -> float:
    from model import GPT, GPTConfig

    saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in saved["model"].items()})
    model.eval()
    text = TinyShakespeare().read()
    tokens_N = CharTokenizer.from_text(text).encode(text)[int(0.9 * len(text)) :].long()
    T = saved["model_args"]["block_size"]
    total = 0.0
    for start in range(0, len(tokens_N) - 1, 64 * T):
        some = tokens_N[start : start + 64 * T + 1]
        for inputs, targets in zip(some[:-1].split(T), some[1:].split(T), strict=True):
            logits_BTV, _ = model(inputs[None], targets[None])
            total += cross_entropy(logits_BTV, targets[None], reduction="sum").item()
    return total / (len(tokens_N) - 1)


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"nanoGPT failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("settings", choices=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=1337)
    args = parser.parse_args()
    print(json.dumps(train(args.checkout, args.settings, args.seed)))


if __name__ == "__main__":
    main()
