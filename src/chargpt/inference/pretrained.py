"""Loads a trained model and its tokenizer from a run directory, checkpoint or export, without Lightning or Hydra."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, overload

import torch

from chargpt.checkpoint import safetensors_file, torch_file
from chargpt.config.instantiate import instantiate
from chargpt.config.model import build_model
from chargpt.config.trust import Trust, trusted_packages
from chargpt.data.tokenizer import Tokenizer, encode
from chargpt.errors import UserError
from chargpt.inference.generate import SamplingSettings, generate
from chargpt.inference.ngram import NGramModel
from chargpt.model.language_model import LanguageModel
from chargpt.runs.latest import find_run, newest_run
from chargpt.utils.paths import resolve_path

log = logging.getLogger(__name__)


@dataclass
class PretrainedModel:
    """A trained model with its tokenizer and config.

    Attributes:
        model: the module, in eval mode.
        config: the config of the run, as plain data.
        step: the number of optimizer steps it was trained for.
        path: the file it was loaded from.
        corpus_sha256: SHA-256 of the text it was trained on.
        draft: an n-gram model of that text, which makes sampling faster; None if there is none.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    config: dict[str, Any]
    step: int
    path: Path
    corpus_sha256: str
    draft: NGramModel | None = None

    @overload
    def generate(
        self, prompt: str | None = None, max_new_tokens: int = 500, **settings: Unpack[SamplingSettings]
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str | None = None,
        max_new_tokens: int = 500,
        *,
        num_samples: int,
        **settings: Unpack[SamplingSettings],
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | None = None,
        max_new_tokens: int = 500,
        *,
        num_samples: int | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> str | list[str]:
        """Returns the prompt and its continuation; with `num_samples`, a list of that many texts.

        Args:
            prompt: None for the first token of the vocabulary, in most texts a line break.
            settings: temperature, top_k, top_p, seed, window, quantize, cuda_graph: see `chargpt.inference.generate`;
                speculative: whether to use the `draft`.

        Raises:
            UserError: as `stream`.
        """
        prompt = self.first_token() if prompt is None else prompt
        count = 1 if num_samples is None else num_samples
        pieces = self.stream(prompt, max_new_tokens, num_samples=count, **settings)
        samples = list(zip(*pieces, strict=True)) or [()] * count
        texts = [prompt + "".join(sample) for sample in samples]
        return texts[0] if num_samples is None else texts

    @property
    def directory(self) -> Path | None:
        """The run directory that contains the checkpoint; None if the file is not in one."""
        folder = self.path.parent
        return folder.parent if folder.name == "checkpoints" else None

    def first_token(self) -> str:
        """Returns token 0 as text, the default prompt as in the lecture. It is a line break in most texts."""
        return self.tokenizer.decode(torch.tensor([0]))

    def stream(self, prompt: str, max_new_tokens: int, **settings: Any) -> Iterator[list[str]]:
        """Yields the text of each new token, for all samples, as it is generated.

        Raises:
            UserError: the prompt is empty or has characters outside the vocabulary, or a setting is invalid.
        """
        if not prompt:
            raise UserError("the prompt is empty: the model needs at least one character to continue")
        draft = self.draft if settings.pop("speculative", True) else None
        tokens = generate(self.model, encode(self.tokenizer, prompt), max_new_tokens, draft=draft, **settings)
        return ([self.tokenizer.decode(next_1) for next_1 in next_B[:, None]] for next_B in tokens)


def load(
    run: str | Path, device: str | torch.device = "cpu", trust: str | Iterable[str] | Trust = ()
) -> PretrainedModel:
    """Loads the best model of a run directory, or the model of a checkpoint or of a safetensors file of `export.py`.

    Args:
        run: its path, or `latest` for the run in `outputs` that finished last.
        trust: packages whose code the file may use, for a model or tokenizer that is not part of chargpt.

    Raises:
        UserError: the run does not exist or has no checkpoint yet, the file was not written by chargpt, or it requires
            the code of a package that is not trusted.
    """
    trust = trust if isinstance(trust, Trust) else Trust(packages=trusted_packages(trust))
    path = find_checkpoint(find_run("run", run))
    checkpoint = (safetensors_file if safetensors_file.is_safetensors(path) else torch_file).read(path)
    metadata = checkpoint["chargpt"]
    tokenizer = instantiate(metadata["tokenizer"], "tokenizer", Tokenizer, trust)
    model = build_model(metadata["config"]["model"], tokenizer.vocab_size, trust)
    weights = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items()}
    for name, first in model.tied_weight_names().items():
        if first in weights:  # an export contains a tied weight once
            weights.setdefault(name, weights[first])
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not match its config: {str(error).splitlines()[-1]}") from error
    try:
        model.smoke_test()
    except ValueError as error:
        raise UserError(f"{path}: the model that its config describes cannot be used: {error}") from error
    model.eval().requires_grad_(False)
    step, corpus_sha256 = checkpoint["global_step"], metadata["corpus_sha256"]
    draft = _load_draft(draft_file(path), tokenizer.vocab_size)
    return PretrainedModel(model.to(device), tokenizer, metadata["config"], step, path, corpus_sha256, draft)


def draft_file(path: Path) -> Path:
    """The file of the n-gram model that belongs to a checkpoint or an export; it need not exist."""
    if safetensors_file.is_safetensors(path):
        return path.with_suffix(f".draft{safetensors_file.SUFFIX}")
    return path.with_name(f"draft{safetensors_file.SUFFIX}")


def _load_draft(file: Path, vocab_size: int) -> NGramModel | None:
    """The n-gram model of a file; None if there is none. Sampling works without it."""
    try:
        return NGramModel.load(file, vocab_size) if file.is_file() else None
    except ValueError as error:
        log.warning("%s is damaged (%s): sampling is slower without it", file, error)
        return None


def data_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the `data` group of a saved config.

    A `cache_dir` that does not exist is dropped, since an untrusted checkpoint must not create folders; `_args_`, too.
    """
    settings = {name: value for name, value in config["data"].items() if name != "_args_"}
    folder = settings.get("cache_dir")
    if folder and not (isinstance(folder, str) and resolve_path("data.cache_dir", folder).is_dir()):
        settings["cache_dir"] = None
    return settings


def find_checkpoint(run: Path, names: tuple[str, ...] = ("best.ckpt", "last.ckpt", "previous.ckpt")) -> Path:
    """Returns the checkpoint of a run directory: the first of `names` that exists. A file is returned unchanged."""
    if run.is_file():
        return run
    if not run.is_dir():
        raise UserError(f"there is no run at {run} (current folder: {Path.cwd()}){_newest_folders(run)}")
    for name in names:
        if (path := run / "checkpoints" / name).is_file():
            return path
    if newest := newest_run(run, "status.json"):
        raise UserError(f"{run} is a folder of runs: choose one of them. The newest is {newest}")
    raise UserError(
        f"{run} has no checkpoint in checkpoints/: it is not a run, or was interrupted before its first one"
    )


def _newest_folders(run: Path) -> str:
    try:
        folders = [p for p in run.parent.iterdir() if p.is_dir() and not p.name.startswith(".")]
        names = [p.name for p in sorted(folders, key=lambda p: p.stat().st_mtime)[-3:]]
    except OSError:
        return ""
    if len(names) == 1:
        return f". The only folder in {run.parent} is {names[0]}"
    return f". The newest folders in {run.parent} are {', '.join(names)}" if names else ""
