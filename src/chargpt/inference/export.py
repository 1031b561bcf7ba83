"""Exports the weights of a trained model to a safetensors file."""

from pathlib import Path

from chargpt.checkpoint import safetensors_file
from chargpt.config.instantiate import SAVED_KEYS, SAVED_KEYS_SINCE_0_3
from chargpt.inference.pretrained import PretrainedModel, draft_file
from chargpt.version import __version__


def export_model(trained: PretrainedModel, path: Path, draft: bool = True) -> str:
    """Writes the weights that are used for inference. With EMA these are the averaged weights.

    Args:
        draft: whether to write the n-gram model that makes sampling faster, statistics of the training text, to a file
            next to it. The file of an earlier export is removed otherwise.

    Returns:
        The digest of the content.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    tied = trained.model.tied_weight_names()
    weights = {name: weight for name, weight in trained.model.state_dict().items() if name not in tied}
    metadata = {
        "version": __version__,
        "config": {key: trained.config[key] for key in (*SAVED_KEYS, *SAVED_KEYS_SINCE_0_3) if key in trained.config},
        "tokenizer": trained.tokenizer.as_config(),
        "corpus_sha256": trained.corpus_sha256,
    }
    content = {"state_dict": weights, "global_step": trained.step, safetensors_file.KEY: metadata}
    digest = safetensors_file.save(content, path)
    if draft and trained.draft is not None:
        trained.draft.save(draft_file(path))
    else:
        draft_file(path).unlink(missing_ok=True)
    return digest
