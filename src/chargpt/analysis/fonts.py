"""Selects the installed fonts for figures, and replaces characters that they have no glyph for."""

import functools

from matplotlib import font_manager

# The first two come with matplotlib; the others add scripts that these have no glyphs for, if they are installed.
PREFERRED_FAMILIES = (
    "DejaVu Sans Mono",
    "DejaVu Sans",
    "Noto Sans Mono CJK SC",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Noto Emoji",
    "Symbola",
    "Unifont",
)
REPLACEMENT = "�"


@functools.cache
def font_families() -> list[str]:
    """Returns the installed families in order of preference: each glyph is taken from the first family that has it."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in PREFERRED_FAMILIES if name in installed]


@functools.cache
def _glyphs() -> frozenset[int]:
    files = [font_manager.findfont(name, fallback_to_default=False) for name in font_families()]
    return frozenset().union(*(font_manager.get_font(file).get_charmap() for file in files))


def replace_missing_glyphs(text: str) -> str:
    """Replaces each character that no installed font can draw by `REPLACEMENT`."""
    return "".join(c if ord(c) in _glyphs() else REPLACEMENT for c in text)


def escape_mathtext(text: str) -> str:
    """Escapes `$`, which starts a formula in matplotlib, and replaces characters that cannot be drawn."""
    printable = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return printable.replace("$", r"\$")
