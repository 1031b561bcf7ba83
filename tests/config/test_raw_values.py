"""Tests of the settings that take a text, a path or a name: what is typed is what the command receives."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from chargpt.config.raw_values import RAW_SETTINGS, Raw, quote, quote_value

SPECIAL = st.text(alphabet="\\${}'\"a :,x=\n.[]()@#~*?é") | st.text()
NAMES = [key for key, raw in RAW_SETTINGS.items() if raw is Raw.NAME]
PATHS = [key for key, raw in RAW_SETTINGS.items() if raw in (Raw.PATH, Raw.PATHS)]


def received(override: str, sweep: bool = False):
    """The value, or the values of a sweep, that a command receives."""
    parsed = OverridesParser.create().parse_override(quote(override, sweep))
    assert parsed.key_or_group == override.partition("=")[0]
    if parsed.is_sweep_override():
        return [received(f"x={value}") for value in parsed.sweep_string_iterator()]
    config = OmegaConf.create({"value": parsed.value()})
    return OmegaConf.to_container(config, resolve=True)["value"]


@given(text=SPECIAL)
@example(text="What's = (this), {or} [that]: $5?")
@example(text="'Tis day")
@example(text='"Is it?" he')
@example(text="'quoted'")
@example(text="`${base}/users/${id}`")
@example(text="\\${x} \\\\${y}")
@example(text="ends in a backslash \\")
@example(text="a backslash and a line break \\\n")
@example(text="1,2")
@example(text="  spaces  ")
@example(text="1e3")
@example(text="null")
@example(text="???")
@example(text="")
def test_a_text_is_received_as_it_is_typed(text):
    for key in ("prompt", "text"):
        assert received(f"{key}={text}") == text


@given(text=SPECIAL)
def test_a_quoted_value_is_one_literal_string(text):
    assert received(f"x={quote_value(text)}") == text


@pytest.mark.parametrize("key", [*PATHS, *NAMES])
@pytest.mark.parametrize(
    "value", ["my run, v=2 (é) {x} #1", "it's", "1e3", "true", "a:b", "~/x y", "@x", 'a "b" c', "x[1]"]
)
def test_a_path_or_name_needs_no_quotes(key, value):
    assert received(f"{key}={value}") == value


@pytest.mark.parametrize("key", [*PATHS, *NAMES])
def test_a_path_or_name_may_be_null_quoted_or_interpolated(key, monkeypatch):
    monkeypatch.setenv("FOLDER", "texts")
    assert received(f"{key}=null") is None
    assert received(f"{key}='a, b'") == "a, b"
    assert received(f'{key}="a, b"') == "a, b"
    assert received(f"{key}=${{oc.env:FOLDER}}/my book's.txt") == "texts/my book's.txt"
    assert received(f"{key}=${{oc.env:MISSING,'a, b'}}") == "a, b"


@pytest.mark.parametrize("name", ["[a,b].txt", "[a,b]", "'x'", "${x}.txt", "a,b", "choice(a,b)", "null"])
@pytest.mark.parametrize("sweep", [False, True])
def test_an_existing_file_of_that_name_is_meant(name, sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    for key in PATHS:
        assert received(f"{key}={name}", sweep) == name


def test_the_paths_of_texts_may_be_a_list():
    assert received("data.path=[a.txt, it's mine.txt,'x, y.txt',${oc.env:NONE,z}.txt]") == [
        "a.txt",
        "it's mine.txt",
        "x, y.txt",
        "z.txt",
    ]
    assert received("data.path=[ab]*.txt") == "[ab]*.txt", "a pattern"


def test_paths_and_names_are_swept_where_commas_separate_them(monkeypatch):
    monkeypatch.setenv("A", "a")
    assert received("data.path=my book.txt,it's.txt", sweep=True) == ["my book.txt", "it's.txt"]
    assert received("data.path=[a,b],[c d]", sweep=True) == [["a", "b"], ["c d"]]
    assert received("data.path='a,b.txt',c.txt", sweep=True) == ["a,b.txt", "c.txt"]
    assert received("name=x y, z", sweep=True) == ["x y", "z"]
    assert received("data.path=choice(a.txt,b.txt)", sweep=True) == ["a.txt", "b.txt"]
    assert received("data.path=my book.txt", sweep=True) == "my book.txt"
    assert received("hydra.sweep.dir=a, b=${oc.env:A}", sweep=True) == "a, b=a", "Hydra's own settings are not swept"
    assert received("name=${oc.env:NONE,x},b", sweep=True) == ["x", "b"]


@pytest.mark.parametrize("key", ["+data.path", "++data.path"])
def test_an_added_setting_is_read_alike(key):
    assert quote(f"{key}=a b's.txt") == f"{key}='a b\\'s.txt'"


@pytest.mark.parametrize(
    "override", ["data.path=/tmp/a-b_c/x.txt", "name=mine", "run=outputs/gpt_nano/2026-01-01_12-00-00"]
)
def test_a_value_that_needs_no_quotes_gets_none(override):
    """The folders of sweeps contain overrides as they are."""
    assert quote(override) == quote(override, sweep=True) == override


@pytest.mark.parametrize("override", ["model.n_layer=1,2", "+x=[1,2]", "--help", "~callbacks.samples", "prompt", "x"])
def test_other_settings_are_not_quoted(override):
    assert quote(override) == quote(override, sweep=True) == override
