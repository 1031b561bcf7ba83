"""Writes the weights of a trained model to a safetensors file, for use elsewhere."""

from pathlib import Path

from chargpt.checkpoint import safetensors_file
from chargpt.config.instantiate import SAVED_KEYS, SAVED_KEYS_SINCE_0_3
from chargpt.inference.pretrained import PretrainedModel
from chargpt.version import __version__


def export_model(trained: PretrainedModel, path: Path) -> str:
    """Writes a model as it is used: a run that averages its weights has the average in its checkpoints.

    Returns:
        The digest of the content.

    Raises:
        OSError: the disk is full, or the like.
    """
    tied = trained.model.tied_weight_names()
    weights = {name: weight for name, weight in trained.model.state_dict().items() if name not in tied}
    ours = {
        "version": __version__,
        "config": {key: trained.config[key] for key in (*SAVED_KEYS, *SAVED_KEYS_SINCE_0_3) if key in trained.config},
        "tokenizer": trained.tokenizer.as_config(),
        "corpus_sha256": trained.corpus_sha256,
    }
    content = {"state_dict": weights, "global_step": trained.step, safetensors_file.KEY: ours}
    return safetensors_file.save(content, path)
