"""look.py: pictures of a trained model at work on a text, as files and in the run's TensorBoard."""

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

from chargpt.analysis.characters import kind, labels
from chargpt.analysis.fonts import REPLACEMENT, drawable
from chargpt.analysis.plots import draw_attention, draw_surprise
from chargpt.analysis.predictions import attention_maps, log_probabilities
from chargpt.cli.sample import checked_device, given_text
from chargpt.config.instantiate import build
from chargpt.data.datamodule import TextDataModule
from chargpt.errors import Mistake
from chargpt.inference.pretrained import TrainedModel, latest, load, text_settings
from chargpt.model.ensemble import Ensemble
from chargpt.utils.atomic_write import whole
from chargpt.utils.paths import shown, typed_path

LONGEST = 1024  # tokens of a text that can be drawn
SQUARE = 64  # tokens that fit on both axes of a map of attention


def look(run: str, text: str | None, folder: str | None, device: str) -> None:
    """Draws what the model expects along a text, where each head looks, and lists its token embeddings.

    Raises:
        Mistake: no such run, or a text that cannot be read, said or drawn.
    """
    trained = load(latest() if run == "latest" else run, checked_device(device))
    tokens_T = _tokens(trained, text)
    asked = folder and typed_path("folder", folder)
    place = asked or (trained.directory and trained.directory / "pictures")
    if place is None:
        raise Mistake(f"{trained.path} lies in no run directory: say where the pictures go, folder=FOLDER")
    pictures, surprise = _draw(trained, tokens_T)
    print(f"  surprise  {surprise:.2f} bits a character over {len(tokens_T) - 1} characters")
    if len(pictures) == 1:
        print(
            f" attention  none to draw: a {type(trained.model).__name__} looks at nothing but the last character"
        )
    elif len(tokens_T) > (size := _square(trained, tokens_T)):
        print(
            f" attention  of the first {size} characters: more do not fit on the axes, or into the model's block"
        )
    if len(tokens_T) > (drawn := sum(drawable(label) == label for label in labels(tokens_T, trained.tokenizer))):
        missing = len(tokens_T) - drawn
        print(f"     fonts  {missing} characters are drawn as {REPLACEMENT}: no font on this machine has them")
    for path in _keep(place, pictures):
        print(f"   picture  {shown(path)}")
    if trained.directory:
        _log(trained, pictures)
        print(f"      look  tensorboard --logdir {trained.directory}   (Images, Projector)")


@dataclass
class Picture:
    name: str
    figure: Figure


def _tokens(trained: TrainedModel, text: str | None) -> Integer[Tensor, " T"]:
    if text is None:  # what it was validated on
        data = build(text_settings(trained.config), "data", TextDataModule)
        data.read(trained.tokenizer)
        return data.split("val")[:SQUARE].long()
    tokens_T = trained.tokenizer.encode(given_text("text", text)).long()
    if len(tokens_T) < 2:
        raise Mistake("text is too short: give two characters or more, the first to expect the second from")
    if len(tokens_T) > LONGEST:
        raise Mistake(f"text has {len(tokens_T):,} characters: a picture holds {LONGEST:,}, so take a part of it")
    return tokens_T


def _square(trained: TrainedModel, tokens_T: Tensor) -> int:
    return min(len(tokens_T), trained.model.block_size, SQUARE)


def _draw(trained: TrainedModel, tokens_T: Integer[Tensor, " T"]) -> tuple[list[Picture], float]:
    """The pictures, and the mean surprise in bits."""
    model, tokenizer = trained.model, trained.tokenizer
    names = [drawable(label) for label in labels(tokens_T, tokenizer)]
    expected_TV = log_probabilities(model, tokens_T)
    surprise = -expected_TV[:-1].gather(1, tokens_T[1:, None]).mean().item() / log(2)
    vocabulary = [drawable(label) for label in labels(torch.arange(tokenizer.vocab_size), tokenizer)]
    title = f"{trained.config['name']}, {trained.step:,} steps"
    heading = f"{title}: surprise {surprise:.2f} bits a character; red: the character that came"
    pictures = [Picture("surprise", draw_surprise(expected_TV, tokens_T, names, vocabulary, heading))]
    size = _square(trained, tokens_T)
    maps = attention_maps(model, tokens_T[:size])
    whose = f" of the first of {len(model.members)} members" if isinstance(model, Ensemble) else ""
    for layer, maps_HTT in enumerate(maps, 1):
        heading = (
            f"{title}: layer {layer} of {len(maps)}{whose}, how much each character takes from those before it"
        )
        pictures.append(Picture(f"attention_layer_{layer}", draw_attention(maps_HTT, names[:size], heading)))
    return pictures, surprise


def _keep(folder: Path, pictures: list[Picture]) -> list[Path]:
    """Writes the PNGs; their paths."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for picture in pictures:
            paths.append(folder / f"{picture.name}.png")
            content = BytesIO()
            picture.figure.savefig(content, format="png")
            with whole(paths[-1]) as file:
                file.write(content.getvalue())
    except OSError as error:
        raise Mistake(f"{folder} cannot be written: {error.strerror}. Choose another: folder=FOLDER") from error
    return paths


def _log(trained: TrainedModel, pictures: list[Picture]) -> None:
    """Pictures for TensorBoard's Images tab, and the token embeddings for its Projector."""
    board, tokenizer = trained.directory / "tensorboard", trained.tokenizer
    tokens_V = torch.arange(tokenizer.vocab_size)
    kinds = [kind(tokenizer.decode(token[None])) for token in tokens_V]
    rows = [list(row) for row in zip(labels(tokens_V, tokenizer), kinds, strict=True)]
    shutil.rmtree(board / f"{trained.step:05d}", ignore_errors=True)  # of an earlier look
    with SummaryWriter(str(board)) as writer:
        for picture in pictures:
            writer.add_figure(f"look/{picture.name}", picture.figure, trained.step)
        vectors_VC = trained.model.token_vectors()
        writer.add_embedding(vectors_VC, rows, None, trained.step, "tokens", ["token", "kind"])
