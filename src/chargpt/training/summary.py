"""Writes the sample and metrics.json of a finished run."""

import logging
from typing import Any

import torch

from chargpt.inference.decode import DecodeStep
from chargpt.inference.ngram import NGramModel
from chargpt.inference.pretrained import load
from chargpt.model.loss import bits_per_character, perplexity
from chargpt.runs.directory import write_json
from chargpt.training.callbacks.checkpoint import CheckpointCallback
from chargpt.training.setup import Run
from chargpt.training.trainer import device_name
from chargpt.utils.atomic_write import atomic_write_text

log = logging.getLogger(__name__)

SAMPLE_TOKENS = 500  # of sample.txt
MAX_DRAFT_BYTES, MAX_DRAFT_SHARE = 5_000_000, 0.1  # of the n-gram model: in total, and as a share of the weights


def summarize(run: Run, complete_loss: float | None = None) -> tuple[dict[str, Any], str]:
    """Writes and returns the metrics and the sample. metrics.json comes last: it marks the run as finished.

    Without validation the last checkpoint is the best, and the metrics of validation are null.

    Args:
        complete_loss: the loss of the best checkpoint on the complete validation split, if the validations during
            training have read a part of it.
    """
    directory, metrics_callback, data = run.directory, run.metrics_callback, run.data
    if validated := metrics_callback.best_step > 0:
        val_loss: float | None = metrics_callback.best_val_loss if complete_loss is None else complete_loss
    else:
        CheckpointCallback.copy(directory.last, directory.best)
        val_loss = None
    _write_draft(run)
    sample = load(directory.best, trust=run.trust).generate(max_new_tokens=SAMPLE_TOKENS, seed=run.config["seed"])
    atomic_write_text(directory.sample, sample + "\n")
    steps, seconds = run.trainer.global_step, run.timer.seconds()
    tokens = steps * run.trainer.accumulate_grad_batches * data.batch_size * data.block_size
    measured = {
        "val_loss": val_loss,
        "val_bpc": None if val_loss is None else bits_per_character(val_loss, data.characters_per_token),
        "val_perplexity": None if val_loss is None else perplexity(val_loss),
    }
    score = metrics_callback.best_score if validated else None
    metrics = {
        "monitor": metrics_callback.monitor.name,
        "mode": metrics_callback.monitor.mode,
        "score": score if complete_loss is None else measured.get(metrics_callback.monitor.name, score),
        **measured,
        "validation_tokens": metrics_callback.validation_tokens
        if complete_loss is None
        else len(data.val_tokens_N) - 1,
        "final_val_loss": metrics_callback.val_loss if run.trainer.enable_validation else None,
        "initial_loss": metrics_callback.initial_loss,
        **({"partial_validation": True} if metrics_callback.partial_validation else {}),
        "best_step": metrics_callback.best_step if validated else steps,
        "steps": steps,
        "epochs": run.module.batches / data.batches_per_epoch,
        "rollbacks": len(run.rollbacks.steps),
        **{f"{activity}_seconds": spent for activity, spent in seconds.items()},
        "wall_seconds": sum(seconds.values()),
        "tokens_per_second": tokens / seconds["train"],
        "parameters": run.module.parameter_count,
        "flops_per_token": run.module.flops_per_token,
        "corpus": data.corpus.name,
        "corpus_sha256": data.corpus_sha256,
        "seed": run.config["seed"],
        "devices": run.trainer.world_size,
        "torch": torch.__version__,
        "device": device_name(run.trainer.strategy.root_device),
    }
    write_json(directory.metrics, metrics)
    directory.metrics_before.unlink(missing_ok=True)
    directory.write_status("finished", steps)
    return metrics, sample


def _write_draft(run: Run) -> None:
    """Writes the n-gram model of the training text that makes sampling faster, if the model can use it."""
    if not DecodeStep.supports(run.model):
        return
    weights = torch.float32.itemsize * run.module.parameter_count
    limit = min(MAX_DRAFT_BYTES, round(MAX_DRAFT_SHARE * weights))
    draft = NGramModel.count(run.data.train_tokens_N.cpu(), run.model.vocab_size, limit)
    try:
        draft.save(run.directory.draft)
    except OSError as error:
        log.warning("%s cannot be written (%s): sampling is slower without it", run.directory.draft, error.strerror)
