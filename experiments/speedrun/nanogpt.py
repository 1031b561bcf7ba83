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

from chargpt.data.datamodule import TextDataModule
from chargpt.inference.evaluate import mean_loss
from chargpt.model.language_model import LanguageModel

# Its README's setting for a laptop; and its default for one GPU.
LAPTOP = dict(device="cpu", compile=False, block_size=64, batch_size=12, n_layer=4, n_head=4, n_embd=128, dropout=0.0)
SETTINGS = {
    "laptop": LAPTOP | dict(max_iters=2000, lr_decay_iters=2000),
    "gpu": dict(device="cuda", compile=True),
}
EVERY = 1000  # steps between two of its own evaluations


class Theirs(LanguageModel):
    """Its model as one of ours."""

    def __init__(self, checkpoint: Path):
        from model import GPT, GPTConfig

        super().__init__()
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        self.block_size = saved["model_args"]["block_size"]
        self.gpt = GPT(GPTConfig(**saved["model_args"])).eval()
        self.gpt.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in saved["model"].items()})

    def forward(self, tokens_BT: torch.Tensor, cache: None = None) -> torch.Tensor:
        return self.gpt(tokens_BT, tokens_BT)[0]  # without targets it gives the last logits alone


def train(checkout: Path, name: str, seed: int) -> dict[str, float]:
    """Trains it; gives `train_seconds`, `steps` and `final_val_loss`."""
    data = TextDataModule.from_tiny_shakespeare(block_size=1, batch_size=1)  # only the text is wanted
    data.read()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanoGPT"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "out*"))
        script = copy / "train.py"
        script.write_text(script.read_text().replace("manual_seed(1337", f"manual_seed({seed}"))
        (copy / "data/shakespeare_char/input.txt").write_text(data.tokenizer.decode(data.split("all")))
        _run([sys.executable, "data/shakespeare_char/prepare.py"], copy)
        words = dict(SETTINGS[name], out_dir="out", always_save_checkpoint=True, eval_interval=EVERY)
        words |= dict(eval_iters=20, log_interval=1)
        flags = [f"--{key}={value}" for key, value in words.items()]
        printed = _run([sys.executable, "train.py", "config/train_shakespeare_char.py", *flags], copy)
        steps = [(int(i), float(ms)) for i, ms in re.findall(r"iter (\d+): loss \S+, time (\S+)ms", printed)]
        usual = [ms for i, ms in steps if i % EVERY]
        sys.path.insert(0, str(checkout))
        return {
            "train_seconds": (sum(usual) + (len(steps) - len(usual)) * statistics.median(usual)) / 1000,
            "steps": len(steps) - 1,
            "final_val_loss": mean_loss(Theirs(copy / "out" / "ckpt.pt"), data.val_tokens_N, 4096),
        }


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
