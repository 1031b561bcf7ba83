"""Trains the recipe of gpt_modern with one change at a time, 3 seeds each; writes ablation.csv and README.md's table.

    python experiments/ablation/run.py                  # an hour and a half on two cores; resumes
    python experiments/ablation/seconds.py              # the step time of each variant
    python experiments/ablation/run.py "the recipe" SOAP AdamW

Each run is `python train.py ... seed=...`, 300 steps of that recipe, on the training split only: its last
tenth is held out, and the validation split is not used. All variants take the same steps on the same batches.
seconds.py measures the step times separately, because these runs share the machine with each other and other work.
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

MODEL = "model=gpt_modern"  # whose recipe it is
# Name of the change -> its overrides.
VARIANTS: dict[str, list[str]] = {
    "the recipe": [],
    "learned positions": ["model/position=learned"],
    "RMSNorm": ["model/norm=rms_norm_plain"],
    "layer norm with weights": ["model/norm=layer_norm"],
    "no QK norm": ["model/attention=causal"],
    "ReLU": ["model/feed_forward=relu"],
    "GELU": ["model/feed_forward=gelu"],
    "SwiGLU": ["model/feed_forward=swiglu"],
    "no n-gram embeddings": ["model/ngram_embedding=none"],
    "pairs only": ["model/ngram_embedding=pairs"],
    "pairs and triples": ["model/ngram_embedding=pairs_and_triples"],
    "65,536 rows for n-grams": ["model.ngram_embedding.buckets=65536"],
    "no n-gram dropout": ["model.ngram_embedding.dropout=0"],
    "no token dropout": ["model.token_dropout=0"],
    "dropout 0.1 in all layers": ["model.dropout=0.1"],
    "no value embeddings": ["model/value_residual=none"],
    "value residuals": ["model/value_residual=residual"],
    "U-net skips": ["model/unet_skips=u_net"],
    "soft-capped logits": ["model/softcap=soft_cap"],
    "GPT-2 initialization": ["model/initialization=gpt2"],
    "head not initialized to 0": ["model.initialization.head=false"],
    "tied head": ["model.tie_weights=true"],
    "no embedding norm": ["model.embedding_norm=false"],
    "two members, half the batch each": ["model=gpt_ensemble", "model.members=2", "data.batch_size=12"],
    "AdamW": ["optimizer=adamw", "optimizer.lr=3e-3"],
    "SOAP": ["optimizer=soap"],
    "4 orthogonalization steps": ["optimizer.orthogonalization_steps=4"],
    "Muon with weight decay 0.1": ["optimizer.weight_decay=0.1"],
    "cosine schedule": ["schedule=warmup_cosine", "schedule.final=0"],
    "decay over the last 20 %": ["schedule.decay=0.2"],
    "block warm-up of 100 steps": ["data.block_warmup=100"],
    "EMA of the weights": ["trainer.ema_decay=0.98"],
}


def overrides_of(name: str) -> list[str]:
    """The overrides of a variant, with its model."""
    variant = VARIANTS[name]
    return variant if any(override.startswith("model=") for override in variant) else [MODEL, *variant]


def run(name: str, seed: int) -> dict[str, str | float]:
    length = [f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}"]
    data = held_out.data_overrides(HERE / "runs")
    folder = HERE / "runs" / name.replace(" ", "_") / str(seed)
    metrics = held_out.train(folder, [*length, *overrides_of(name), *data, f"seed={seed}"])
    return {"variant": name, "seed": seed} | {key: metrics[key] for key in ("final_val_loss", "parameters")}


def table_rows(results: list[dict]) -> list[dict[str, str]]:
    def values(name: str, key: str) -> list[float]:
        return [float(row[key]) for row in results if row["variant"] == name and row[key] != ""]

    names = list(dict.fromkeys(row["variant"] for row in results))
    recipe_loss = statistics.mean(values(names[0], "final_val_loss"))
    step_times = {row["variant"]: row["relative to the recipe"] for row in held_out.read_rows(HERE / "seconds.csv")}
    rows = []
    for name in names:
        losses = values(name, "final_val_loss")
        overrides = " ".join(VARIANTS[name])
        rows.append(
            {
                "change": name,
                "overrides": f"`{overrides}`" if overrides else "",
                "loss": mean_and_spread(losses, 4),
                "difference": f"{statistics.mean(losses) - recipe_loss:+.4f}",
                "step time": f"{float(step_times[name]):.2f}" if name in step_times else "",
                "parameters": f"{int(values(name, 'parameters')[0]):,}",
            }
        )
    return rows


def publish(results: list[dict]) -> None:
    results.sort(key=lambda row: (list(VARIANTS).index(row["variant"]), int(row["seed"])))
    write_rows(HERE / "ablation.csv", results)
    put(HERE / "README.md", "ablation", table(table_rows(results)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", help="all if omitted")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of parallel runs, one thread each")
    args = parser.parse_args()
    unknown = set(args.variants) - set(VARIANTS)
    if unknown:
        raise SystemExit(f"unknown variant {sorted(unknown)[0]!r}; the variants are {', '.join(VARIANTS)}")
    results: list[dict] = [
        row for row in held_out.read_rows(HERE / "ablation.csv") if row["variant"] not in args.variants
    ]
    done = {(row["variant"], int(row["seed"])) for row in results}
    baseline = next(iter(VARIANTS))
    requested = [baseline, *args.variants] if args.variants else list(VARIANTS)
    missing = [(name, seed) for seed in SEEDS for name in VARIANTS if name in requested and (name, seed) not in done]
    for row in held_out.in_parallel(run, missing, args.jobs):
        results.append(row)
        print(row, flush=True)
        publish(results)
    publish(results)  # also if only seconds.csv is new


if __name__ == "__main__":
    main()
