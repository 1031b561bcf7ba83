"""visualize.py: pictures of a trained model at work on a text, as files and in the run's TensorBoard."""

import shutil
from dataclasses import dataclass
from io import BytesIO
from math import log
from pathlib import Path

import torch
from jaxtyping import Integer
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from chargpt.analysis.fonts import REPLACEMENT, replace_missing_glyphs
from chargpt.analysis.plots import plot_attention, plot_surprisal
from chargpt.analysis.predictions import attention_maps, log_probabilities
from chargpt.analysis.token_labels import character_class, token_labels
from chargpt.cli.sample import read_text_argument, resolve_device
from chargpt.config.instantiate import instantiate
from chargpt.data.datamodule import TextDataModule
from chargpt.errors import UserError
from chargpt.inference.pretrained import PretrainedModel, data_config, latest_run, load
from chargpt.model.ensemble import Ensemble
from chargpt.utils.atomic_write import atomic_write
from chargpt.utils.paths import printable, resolve_path

MAX_TOKENS = 1024  # tokens of a text that can be drawn
ATTENTION_TOKENS = 64  # tokens that fit on both axes of a map of attention


def visualize(run: str, text: str | None, folder: str | None, device: str) -> None:
    """Draws what the model expects along a text, where each head looks, and lists its token embeddings.

    Raises:
        UserError: no such run, or a text that cannot be read, said or drawn.
    """
    trained = load(latest_run() if run == "latest" else run, resolve_device(device))
    tokens_T = _tokens(trained, text)
    asked = folder and resolve_path("folder", folder)
    place = asked or (trained.directory and trained.directory / "pictures")
    if place is None:
        raise UserError(f"{trained.path} lies in no run directory: say where the pictures go, folder=FOLDER")
    pictures, surprise = _draw(trained, tokens_T)
    print(f"  surprise  {surprise:.2f} bits a character over {len(tokens_T) - 1} characters")
    if len(pictures) == 1:
        print(f" attention  none to draw: a {type(trained.model).__name__} looks at nothing but the last character")
    elif len(tokens_T) > (size := _attention_tokens(trained, tokens_T)):
        print(f" attention  of the first {size} characters: more do not fit on the axes, or into the model's block")
    if len(tokens_T) > (
        drawn := sum(replace_missing_glyphs(label) == label for label in token_labels(tokens_T, trained.tokenizer))
    ):
        missing = len(tokens_T) - drawn
        print(f"     fonts  {missing} characters are drawn as {REPLACEMENT}: no font on this machine has them")
    for path in _save_images(place, pictures):
        print(f"   picture  {printable(path)}")
    if trained.directory:
        _log_to_tensorboard(trained, pictures)
        print(f"      look  tensorboard --logdir {trained.directory}   (Images, Projector)")


@dataclass
class Image:
    name: str
    figure: Figure


def _tokens(trained: PretrainedModel, text: str | None) -> Integer[Tensor, " T"]:
    if text is None:  # what it was validated on
        data = instantiate(data_config(trained.config), "data", TextDataModule)
        data.read(trained.tokenizer)
        return data.split("val")[:ATTENTION_TOKENS].long()
    tokens_T = trained.tokenizer.encode(read_text_argument("text", text)).long()
    if len(tokens_T) < 2:
        raise UserError("text is too short: give two characters or more, the first to expect the second from")
    if len(tokens_T) > MAX_TOKENS:
        raise UserError(f"text has {len(tokens_T):,} characters: a picture holds {MAX_TOKENS:,}, so take a part of it")
    return tokens_T


def _attention_tokens(trained: PretrainedModel, tokens_T: Tensor) -> int:
    return min(len(tokens_T), trained.model.block_size, ATTENTION_TOKENS)


def _draw(trained: PretrainedModel, tokens_T: Integer[Tensor, " T"]) -> tuple[list[Image], float]:
    """The pictures, and the mean surprise in bits."""
    model, tokenizer = trained.model, trained.tokenizer
    names = [replace_missing_glyphs(label) for label in token_labels(tokens_T, tokenizer)]
    expected_TV = log_probabilities(model, tokens_T)
    surprise = -expected_TV[:-1].gather(1, tokens_T[1:, None]).mean().item() / log(2)
    vocabulary = [
        replace_missing_glyphs(label) for label in token_labels(torch.arange(tokenizer.vocab_size), tokenizer)
    ]
    title = f"{trained.config['name']}, {trained.step:,} steps"
    heading = f"{title}: surprise {surprise:.2f} bits a character; red: the character that came"
    pictures = [Image("surprise", plot_surprisal(expected_TV, tokens_T, names, vocabulary, heading))]
    size = _attention_tokens(trained, tokens_T)
    maps = attention_maps(model, tokens_T[:size])
    whose = f" of the first of {len(model.members)} members" if isinstance(model, Ensemble) else ""
    for layer, maps_HTT in enumerate(maps, 1):
        heading = f"{title}: layer {layer} of {len(maps)}{whose}, how much each character takes from those before it"
        pictures.append(Image(f"attention_layer_{layer}", plot_attention(maps_HTT, names[:size], heading)))
    return pictures, surprise


def _save_images(folder: Path, pictures: list[Image]) -> list[Path]:
    """Writes the PNGs; their paths."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for picture in pictures:
            paths.append(folder / f"{picture.name}.png")
            content = BytesIO()
            picture.figure.savefig(content, format="png")
            with atomic_write(paths[-1]) as file:
                file.write(content.getvalue())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}. Choose another: folder=FOLDER") from error
    return paths


def _log_to_tensorboard(trained: PretrainedModel, pictures: list[Image]) -> None:
    """Pictures for TensorBoard's Images tab, and the token embeddings for its Projector."""
    board, tokenizer = trained.directory / "tensorboard", trained.tokenizer
    tokens_V = torch.arange(tokenizer.vocab_size)
    kinds = [character_class(tokenizer.decode(token[None])) for token in tokens_V]
    rows = [list(row) for row in zip(token_labels(tokens_V, tokenizer), kinds, strict=True)]
    shutil.rmtree(board / f"{trained.step:05d}", ignore_errors=True)  # of an earlier look
    with SummaryWriter(str(board)) as writer:
        for picture in pictures:
            writer.add_figure(f"look/{picture.name}", picture.figure, trained.step)
        vectors_VC = trained.model.input_embeddings()
        writer.add_embedding(vectors_VC, rows, None, trained.step, "tokens", ["token", "kind"])
