"""The default recipe with one part changed at a time, 3 seeds each; writes ablation.csv and README.md's table.

    python experiments/ablation/run.py                  # an hour and a half on two cores; goes on
    python experiments/ablation/seconds.py              # what a step of each takes
    python experiments/ablation/run.py "the recipe" SOAP AdamW

Each run is `python train.py ... seed=...`, 300 steps of the default recipe, on the training split alone: its last
tenth is held out, and the validation split is not looked at. All variants take the same steps on the same batches.
What a part costs is measured apart, in turns (seconds.py): these runs go side by side, and beside other work.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

from chargpt.sweeps.markdown import mean_and_spread, put, table
from chargpt.utils.csv_io import write_rows

sys.path.insert(0, str(Path(__file__).parents[1]))
import held_out

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)
STEPS = 300

# What is changed -> the words for it.
VARIANTS: dict[str, list[str]] = {
    "the recipe": [],
    "learned positions": ["model/position=learned"],
    "RMSNorm": ["model/norm=rms_norm_plain"],
    "layer norm with weights": ["model/norm=layer_norm"],
    "no QK norm": ["model/attention=causal"],
    "ReLU": ["model/feed_forward=relu"],
    "GELU": ["model/feed_forward=gelu"],
    "SwiGLU": ["model/feed_forward=swiglu"],
    "no n-grams": ["model/ngram_embedding=none"],
    "pairs alone": ["model/ngram_embedding=pairs"],
    "pairs and triples": ["model/ngram_embedding=pairs_and_triples"],
    "65,536 rows for n-grams": ["model.ngram_embedding.buckets=65536"],
    "no dropout of n-grams": ["model.ngram_embedding.dropout=0"],
    "no dropout of tokens": ["model.token_dropout=0"],
    "dropout 0.1 everywhere": ["model.dropout=0.1"],
    "no value embeddings": ["model/value_residual=none"],
    "value residuals": ["model/value_residual=residual"],
    "U-net skips": ["model/unet_skips=u_net"],
    "soft-capped logits": ["model/softcap=soft_cap"],
    "GPT-2's first weights": ["model/initialization=gpt2"],
    "only the head not at 0": ["model.initialization.head=false"],
    "tied head": ["model.tie_weights=true"],
    "no norm of the embeddings": ["model.embedding_norm=false"],
    "two members, half the batch each": ["model=gpt_ensemble", "model.members=2", "data.batch_size=12"],
    "AdamW": ["optimizer=adamw", "optimizer.lr=3e-3"],
    "SOAP": ["optimizer=soap"],
    "4 orthogonalization steps": ["optimizer.orthogonalization_steps=4"],
    "Muon with weight decay 0.1": ["optimizer.weight_decay=0.1"],
    "cosine schedule": ["schedule=warmup_cosine", "schedule.final=0"],
    "decay over the last 20 %": ["schedule.decay=0.2"],
    "shorter blocks for 100 steps": ["data.block_warmup=100"],
    "average of the weights": ["trainer.ema_decay=0.98"],
}


def run(name: str, seed: int) -> dict[str, str | float]:
    length = [f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}"]
    data = held_out.words(HERE / "runs")
    folder = HERE / "runs" / name.replace(" ", "_") / str(seed)
    found = held_out.train(folder, [*length, *VARIANTS[name], *data, f"seed={seed}"])
    return {"variant": name, "seed": seed} | {key: found[key] for key in ("final_val_loss", "parameters")}


def rows_of(results: list[dict]) -> list[dict[str, str]]:
    def of(name: str, key: str) -> list[float]:
        return [float(row[key]) for row in results if row["variant"] == name and row[key] != ""]

    names = list(dict.fromkeys(row["variant"] for row in results))
    loss = statistics.mean(of(names[0], "final_val_loss"))
    steps = {row["variant"]: row["of the recipe's"] for row in held_out.measured(HERE / "seconds.csv")}
    lines = []
    for name in names:
        losses = of(name, "final_val_loss")
        words = " ".join(VARIANTS[name])
        lines.append(
            {
                "changed": name,
                "words": f"`{words}`" if words else "",
                "loss": mean_and_spread(losses, 4),
                "difference": f"{statistics.mean(losses) - loss:+.4f}",
                "a step": f"{float(steps[name]):.2f}" if name in steps else "",
                "parameters": f"{int(of(name, 'parameters')[0]):,}",
            }
        )
    return lines


def publish(results: list[dict]) -> None:
    results.sort(key=lambda row: (list(VARIANTS).index(row["variant"]), int(row["seed"])))
    write_rows(HERE / "ablation.csv", results)
    put(HERE / "README.md", "ablation", table(rows_of(results)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", help="all if none is named")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side, a thread each")
    args = parser.parse_args()
    unknown = set(args.variants) - set(VARIANTS)
    if unknown:
        raise SystemExit(f"there is no variant {sorted(unknown)[0]!r}; there are {', '.join(VARIANTS)}")
    results: list[dict] = [
        row for row in held_out.measured(HERE / "ablation.csv") if row["variant"] not in args.variants
    ]
    have = {(row["variant"], int(row["seed"])) for row in results}
    base = next(iter(VARIANTS))  # what the others are compared with
    asked = [base, *args.variants] if args.variants else list(VARIANTS)
    wanted = [(name, seed) for seed in SEEDS for name in VARIANTS if name in asked and (name, seed) not in have]
    for row in held_out.side_by_side(run, wanted, args.jobs):
        results.append(row)
        print(row, flush=True)
        publish(results)
    publish(results)  # with the seconds, if they alone are new


if __name__ == "__main__":
    main()
