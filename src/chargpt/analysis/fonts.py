"""The fonts of this machine that pictures are written in, and what they cannot write."""

import functools

from matplotlib import font_manager

# The first comes with matplotlib; the others add scripts that it has no glyphs for, where they are installed.
PREFERRED_FAMILIES = (
    "DejaVu Sans Mono",
    "DejaVu Sans",
    "Noto Sans Mono CJK SC",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
)
PREFERRED_FAMILIES += (
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
    """The families to write in, matplotlib's own first: for each glyph the first that has it is taken."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in PREFERRED_FAMILIES if name in installed]


@functools.cache
def _glyphs() -> frozenset[int]:
    files = [font_manager.findfont(name, fallback_to_default=False) for name in font_families()]
    return frozenset().union(*(font_manager.get_font(file).get_charmap() for file in files))


def replace_missing_glyphs(text: str) -> str:
    """The text with `REPLACEMENT` for each character that no font here can draw."""
    return "".join(c if ord(c) in _glyphs() else REPLACEMENT for c in text)
