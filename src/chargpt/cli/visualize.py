"""visualize.py: draws the predictions and attention of a trained model on a text, as files and for TensorBoard."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import log
from pathlib import Path

import torch
from jaxtyping import Integer
from matplotlib import style
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from chargpt.analysis.fonts import REPLACEMENT, escape_mathtext, replace_missing_glyphs
from chargpt.analysis.plots import plot_attention, plot_surprisal
from chargpt.analysis.predictions import attention_maps, log_probabilities
from chargpt.analysis.token_labels import character_class, token_labels
from chargpt.cli.sample import read_text_argument, resolve_device
from chargpt.config.instantiate import instantiate
from chargpt.config.trust import Trust, trusted_packages
from chargpt.data.datamodule import TextDataModule
from chargpt.data.tokenizer import encode
from chargpt.errors import UserError
from chargpt.inference.pretrained import PretrainedModel, data_config, load
from chargpt.invocation import tensorboard_command
from chargpt.model.adapters import ModuleAdapter
from chargpt.model.ensemble import Ensemble
from chargpt.runs.directory import EVENT_FILES, RunDirectory
from chargpt.utils.atomic_write import atomic_write
from chargpt.utils.paths import printable, resolve_path

MAX_TOKENS = 1024  # of a surprisal figure
ATTENTION_TOKENS = 64  # on both axes of an attention map


@style.context("default")  # a matplotlibrc in the current folder may be a stranger's
def visualize(run: str, text: str | None, folder: str | None, device: str, trust: Sequence[str]) -> None:
    """Draws the surprisal and the attention maps of a text, and logs the token embeddings to TensorBoard.

    Raises:
        UserError: no such run, or a text that cannot be read, encoded or drawn.
    """
    trained = load(run, resolve_device(device), trust)
    if trained.directory:
        RunDirectory(trained.directory).check_links()
    tokens_T = _tokens(trained, text, Trust(packages=trusted_packages(trust)))
    requested = folder and resolve_path("folder", folder)
    output_folder = requested or (trained.directory and trained.directory / "pictures")
    if output_folder is None:
        raise UserError(f"{trained.path} is not in a run directory: choose an output folder, folder=FOLDER")
    images, surprisal = _draw(trained, tokens_T)
    print(f" surprisal  {surprisal:.2f} bits per character over {len(tokens_T) - 1} characters")
    if len(images) == 1:
        print(f" attention  none: no module of this {_model_name(trained)} has attention_weights")
    elif len(tokens_T) > (size := _attention_tokens(trained, tokens_T)):
        print(f" attention  of the first {size} characters: the limit of the figure or of the model's block size")
    if missing := sum(replace_missing_glyphs(label) != label for label in token_labels(tokens_T, trained.tokenizer)):
        print(f"     fonts  {missing} characters are drawn as {REPLACEMENT}: no font on this machine contains them")
    for path in _save_images(output_folder, images):
        print(f"     image  {printable(path)}")
    if trained.directory:
        _log_to_tensorboard(trained, images, trained.directory / "visualize")
        # In the parent folder, the run has a name; as the logdir itself, TensorBoard would call it ".".
        print(f"      view  {tensorboard_command(trained.directory.parent)}")
        # The first page of a TensorBoard lists its Projector as inactive.
        print("            Images: http://localhost:6006/#images   Projector: http://localhost:6006/#projector")


def _model_name(trained: PretrainedModel) -> str:
    model = trained.model
    return type(model.module if isinstance(model, ModuleAdapter) else model).__name__


@dataclass
class Image:
    name: str
    figure: Figure


def _tokens(trained: PretrainedModel, text: str | None, trust: Trust) -> Integer[Tensor, " T"]:
    if text is None:  # the start of the validation split
        data = instantiate(data_config(trained.config), "data", TextDataModule, trust)
        data.read(trained.tokenizer)
        return data.split("val")[:ATTENTION_TOKENS].long()
    tokens_T = encode(trained.tokenizer, read_text_argument("text", text)).long()
    if len(tokens_T) < 2:
        raise UserError("text is too short: it must have two characters or more")
    if len(tokens_T) > MAX_TOKENS:
        raise UserError(f"text has {len(tokens_T):,} characters: the maximum is {MAX_TOKENS:,}. Use a shorter text")
    return tokens_T


def _attention_tokens(trained: PretrainedModel, tokens_T: Tensor) -> int:
    return min(len(tokens_T), trained.model.block_size, ATTENTION_TOKENS)


def _draw(trained: PretrainedModel, tokens_T: Integer[Tensor, " T"]) -> tuple[list[Image], float]:
    """The figures, and the mean surprisal in bits."""
    model, tokenizer = trained.model, trained.tokenizer
    labels = [replace_missing_glyphs(label) for label in token_labels(tokens_T, tokenizer)]
    log_probs_TV = log_probabilities(model, tokens_T)
    surprisal = -log_probs_TV[:-1].gather(1, tokens_T[1:, None]).mean().item() / log(2)
    vocabulary = [
        replace_missing_glyphs(label) for label in token_labels(torch.arange(tokenizer.vocab_size), tokenizer)
    ]
    title = f"{escape_mathtext(str(trained.config['name']))}, {trained.step:,} steps"
    heading = f"{title}: surprisal {surprisal:.2f} bits per character; red: the actual character"
    images = [Image("surprise", plot_surprisal(log_probs_TV, tokens_T, labels, vocabulary, heading))]
    size = _attention_tokens(trained, tokens_T)
    maps = attention_maps(model, tokens_T[:size])
    member = f" of the first of {len(model.members)} members" if isinstance(model, Ensemble) else ""
    for layer, maps_HTT in enumerate(maps, 1):
        heading = f"{title}: layer {layer} of {len(maps)}{member}, attention of each character to the earlier ones"
        images.append(Image(f"attention_layer_{layer}", plot_attention(maps_HTT, labels[:size], heading)))
    return images, surprisal


def _save_images(folder: Path, images: list[Image]) -> list[Path]:
    """Writes PNG files. Returns their paths."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for image in images:
            paths.append(folder / f"{image.name}.png")
            content = BytesIO()
            image.figure.savefig(content, format="png")
            with atomic_write(paths[-1]) as file:
                file.write(content.getvalue())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}. Choose another: folder=FOLDER") from error
    return paths


def _log_to_tensorboard(trained: PretrainedModel, images: list[Image], log_dir: Path) -> None:
    """Logs figures for TensorBoard's Images tab, and the token embeddings for its Projector.

    Args:
        log_dir: a folder without other event files: a TensorBoard that is already running looks for embeddings only in
            new ones.
    """
    tokenizer = trained.tokenizer
    tokens_V = torch.arange(tokenizer.vocab_size)
    kinds = [character_class(tokenizer.decode(token[None])) for token in tokens_V]
    rows = [list(row) for row in zip(token_labels(tokens_V, tokenizer), kinds, strict=True)]
    for file in log_dir.glob(EVENT_FILES):  # of an earlier call, as the embeddings
        file.unlink()
    shutil.rmtree(log_dir / f"{trained.step:05d}", ignore_errors=True)
    with SummaryWriter(str(log_dir)) as writer:
        for image in images:
            writer.add_figure(f"visualize/{image.name}", image.figure, trained.step)
        try:
            embeddings_VC = trained.model.input_embeddings()
        except NotImplementedError as error:
            print(f" projector  none: {error}")
        else:
            writer.add_embedding(embeddings_VC, rows, None, trained.step, "tokens", ["token", "kind"])
