"""sample.py: generates text. Only the text is printed to standard output."""

import sys
from io import TextIOWrapper
from typing import cast

import torch

from chargpt.data.text_files import read_utf8, without_mark
from chargpt.errors import UserError
from chargpt.inference.pretrained import load
from chargpt.utils.memory import disable_malloc_trim
from chargpt.utils.paths import resolve_path


def sample(
    run: str,
    prompt: str | None,
    max_new_tokens: int,
    temperature: int | float,
    top_k: int | None,
    top_p: int | float | None,
    num_samples: int,
    seed: int,
    window: str,
    quantize: str | None,
    cuda_graph: bool,
    speculative: bool,
    device: str,
    trust: list[str],
) -> None:
    """Streams one sample as it is generated; several samples are generated as a batch and printed at the end.

    Raises:
        UserError: no such run, a prompt that cannot be read or encoded, or invalid sampling settings.
    """
    if num_samples < 1:
        raise UserError(f"num_samples={num_samples}: it must be 1 or more")
    disable_malloc_trim()
    trained = load(run, resolve_device(device), trust)
    prompt = trained.first_token() if prompt is None else read_text_argument("prompt", prompt)
    settings = dict(temperature=temperature, top_k=top_k, top_p=top_p, window=window)
    settings |= dict(quantize=quantize, cuda_graph=cuda_graph, speculative=speculative)
    settings |= dict(num_samples=num_samples, seed=seed)
    pieces = trained.stream(prompt, max_new_tokens, **settings)
    sys.stderr.write(f"{trained.path}, {trained.step} steps\n")
    out = cast(TextIOWrapper, sys.stdout)  # its declared type, TextIO, has no `reconfigure`
    out.reconfigure(encoding="utf-8", newline="")  # independent of the locale
    if num_samples == 1:
        out.write(prompt)
        for (piece,) in pieces:
            out.write(piece)
            out.flush()
        out.write("\n")
    else:
        samples = list(zip(*pieces, strict=True)) or [()] * num_samples  # no new tokens: only the prompts
        for i, sample in enumerate(samples):
            separator = "\n" + "-" * 80 + "\n" if i else ""
            out.write(f"{separator}{prompt}{''.join(sample)}\n")
    out.flush()


def resolve_device(name: str) -> torch.device:
    """The device of this name. Raises `UserError` if it is not available."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name}: {str(error).splitlines()[0]}. Try device=cpu") from error
    return device


def read_text_argument(setting: str, value: str) -> str:
    """The text of a setting without a byte order mark: its value, or for @FILE the content of that file.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    if not value.startswith("@"):
        return without_mark(value)
    path = resolve_path(setting, value[1:])
    if not path.exists():
        raise UserError(f"{setting}=@{path}: No such file. If the text itself starts with @, put it in a file")
    return read_utf8(path, setting)
