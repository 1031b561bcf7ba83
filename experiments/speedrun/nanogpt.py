"""Runs nanoGPT's own train.py with its own settings, and scores it by the rules of the speedrun.

    python experiments/speedrun/nanogpt.py ../nanoGPT laptop --seed 1337

The seconds are those that nanoGPT prints for each step, and their median for a step that also evaluates or saves. The
loss is that of the last checkpoint over the complete validation split, in non-overlapping blocks. nanoGPT runs in a
copy of the checkout, which stays unchanged.
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

from chargpt.data.datamodule import TextDataModule
from chargpt.inference.evaluate import mean_loss
from chargpt.model.language_model import LanguageModel

# The settings for a laptop from nanoGPT's README, and its defaults for one GPU.
LAPTOP = dict(device="cpu", compile=False, block_size=64, batch_size=12, n_layer=4, n_head=4, n_embd=128, dropout=0.0)
SETTINGS = {
    "laptop": LAPTOP | dict(max_iters=2000, lr_decay_iters=2000),
    "gpu": dict(device="cuda", compile=True),
}
EVAL_INTERVAL = 1000


class NanoGPT(LanguageModel):
    """nanoGPT's model as a `LanguageModel`."""

    def __init__(self, checkpoint: Path):
        from model import GPT, GPTConfig  # noqa: PLC0415 - nanoGPT's module, in the checkout

        super().__init__()
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        self.block_size = saved["model_args"]["block_size"]
        self.gpt = GPT(GPTConfig(**saved["model_args"])).eval()
        self.gpt.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in saved["model"].items()})

    def forward(self, tokens_BT: torch.Tensor, cache: None = None) -> torch.Tensor:
        return self.gpt(tokens_BT, tokens_BT)[0]  # without targets it returns only the last logits


def train(checkout: Path, name: str, seed: int) -> dict[str, float]:
    """Trains nanoGPT and returns `train_seconds`, `steps` and `final_val_loss`."""
    data = TextDataModule.from_tiny_shakespeare(block_size=1, batch_size=1)  # only its text is used
    data.read()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanoGPT"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "out*"))
        script = copy / "train.py"
        script.write_text(script.read_text().replace("manual_seed(1337", f"manual_seed({seed}"))
        (copy / "data/shakespeare_char/input.txt").write_text(data.tokenizer.decode(data.split("all")))
        _run([sys.executable, "data/shakespeare_char/prepare.py"], copy)
        settings = dict(SETTINGS[name], out_dir="out", always_save_checkpoint=True, eval_interval=EVAL_INTERVAL)
        settings |= dict(eval_iters=20, log_interval=1)
        flags = [f"--{key}={value}" for key, value in settings.items()]
        output = _run([sys.executable, "train.py", "config/train_shakespeare_char.py", *flags], copy)
        steps = [(int(i), float(ms)) for i, ms in re.findall(r"iter (\d+): loss \S+, time (\S+)ms", output)]
        plain = [ms for i, ms in steps if i % EVAL_INTERVAL]
        sys.path.insert(0, str(checkout))
        return {
            "train_seconds": (sum(plain) + (len(steps) - len(plain)) * statistics.median(plain)) / 1000,
            "steps": len(steps) - 1,
            "final_val_loss": mean_loss(NanoGPT(copy / "out" / "ckpt.pt"), data.val_tokens_N, 4096),
        }


def _run(command: list[str], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"nanoGPT failed: {result.stderr.strip().splitlines()[-1]}")
    return result.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("settings", choices=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=1337)
    args = parser.parse_args()
    print(json.dumps(train(args.checkout, args.settings, args.seed)))


if __name__ == "__main__":
    main()
