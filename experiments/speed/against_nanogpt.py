"""Training seconds of gpt_nano with nanoGPT's laptop recipe, against nanoGPT's own train.py, in interleaved pairs.

    git clone https://github.com/karpathy/nanoGPT
    python experiments/speed/against_nanogpt.py --nanogpt nanoGPT --pairs 5 --steps 200

Both train the same shapes on the same text with the same optimizer on the CPU. nanoGPT's time is the sum of the
milliseconds that its own log gives for each step, without its first one; ours is `train_seconds` of metrics.json,
scaled to as many steps. Writes against_nanogpt.csv beside this file.
"""

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from chargpt.data.corpus import TinyShakespeare

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def nanogpt_seconds(checkout: Path, steps: int) -> float:
    """Seconds of `steps` training steps of nanoGPT's laptop setting (its README), evaluation left out."""
    settings = {
        "device": "cpu",
        "compile": False,
        "eval_interval": 10**9,
        "eval_iters": 1,
        "log_interval": 1,
        "block_size": 64,
        "batch_size": 12,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "max_iters": steps,
        "lr_decay_iters": 2000,
        "dropout": 0.0,
        "out_dir": tempfile.mkdtemp(),
    }
    words = [f"--{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *words]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    # Step 0 is timed together with the evaluation before it.
    times = [float(ms) for ms in re.findall(r"iter [1-9]\d*: loss .*? time ([\d.]+)ms", done.stdout)]
    return sum(times) / len(times) * steps / 1000


def our_seconds(steps: int) -> float:
    """Seconds of `steps` training steps of ours, the first one included."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = ["model=gpt_nano", "recipe=nanogpt_laptop", "trainer=cpu", f"trainer.max_steps={steps}"]
        command = [sys.executable, str(ROOT / "train.py"), *words, f"hydra.run.dir={run}"]
        subprocess.run([*command, f"trainer.val_check_interval={steps}"], capture_output=True, check=True)
        return json.loads((run / "metrics.json").read_text())["train_seconds"]


def prepare(checkout: Path) -> None:
    """nanoGPT's own preparation, on the text that we train on."""
    folder = checkout / "data" / "shakespeare_char"
    if not (folder / "train.bin").exists():
        (folder / "input.txt").write_text(TinyShakespeare().read())
        subprocess.run([sys.executable, "prepare.py"], cwd=folder, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    prepare(args.nanogpt.resolve())
    rows = []
    for pair in range(args.pairs):
        theirs = nanogpt_seconds(args.nanogpt.resolve(), args.steps)
        ours = our_seconds(args.steps)
        rows.append({"pair": pair, "nanogpt": theirs, "chargpt": ours, "ratio": ours / theirs})
        print(f"{pair}: nanoGPT {theirs:.2f} s, chargpt {ours:.2f} s, ratio {ours / theirs:.3f}", flush=True)
    with (HERE / "against_nanogpt.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    ratios = [row["ratio"] for row in rows]
    print(f"median ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
