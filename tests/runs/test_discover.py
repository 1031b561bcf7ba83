"""Which runs a word means: names with special signs, folders, globs and lists."""

from pathlib import Path

import pytest

from chargpt.errors import UserError
from chargpt.runs.discover import common_folder, find_runs

NAMES = ["+lecture=bigram,seed=1", "+lecture=head,seed=1", "a run with blanks", "[odd]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(NAMES):
        folder = tmp_path / "outputs" / "lecture" / name
        folder.mkdir(parents=True)
        (folder / ("status.json" if number % 2 else "metrics.json")).write_text("{}")
        (folder / "checkpoints").mkdir()
    (tmp_path / "outputs" / "lecture" / "empty").mkdir()
    return tmp_path


def names(asked: str) -> set[str]:
    found = find_runs(asked)
    assert len({run.resolve() for run in found}) == len(found)
    return {run.name for run in found}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_found_by_its_path_whatever_signs_it_holds(here, name):
    assert find_runs(f"outputs/lecture/{name}") == [Path("outputs/lecture") / name]
    assert find_runs(f"{here}/outputs/lecture/{name}/") == [here / "outputs" / "lecture" / name]


@pytest.mark.parametrize("asked", ["outputs", "outputs/lecture", "outputs/lecture/*", "out*", "outputs/**/*.json", "."])
def test_a_folder_or_a_glob_means_all_runs_below(here, asked):
    assert names(asked) == set(NAMES)


def test_a_list_takes_names_with_commas_and_what_is_named_twice_once(here):
    place = "outputs/lecture"
    assert names(f"[{place}/{NAMES[0]},{place}/{NAMES[1]}]") == set(NAMES[:2])
    assert names(f"[ '{place}/{NAMES[0]}', {place}/{NAMES[2]} ]") == {NAMES[0], NAMES[2]}
    assert names(f"[{place},{place}/{NAMES[0]},{here}/{place}]") == set(NAMES)
    assert names(f"[{place}/*bigram*,{place}/a*]") == {NAMES[0], NAMES[2]}


def test_what_lies_inside_a_run_is_not_another_run(here):
    inner = here / "outputs" / "lecture" / NAMES[0] / "kept"
    inner.mkdir()
    (inner / "metrics.json").write_text("{}")
    assert names("outputs") == set(NAMES)


def test_the_common_folder_holds_all_runs_and_is_none_of_them(here):
    outputs = Path("outputs")
    assert common_folder(find_runs("outputs")) == outputs / "lecture"
    assert common_folder([outputs / "lecture" / "a"]) == outputs / "lecture"
    assert common_folder([outputs / "lecture" / "a", outputs / "b"]) == outputs
    assert common_folder([Path("/one/a"), Path("/one/two/b")]) == Path("/one")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("nowhere", "nowhere is not there"),
        ("outputs/lecture/empty", r"there is no run in .*empty"),
        ("outputs/x*", "matches nothing"),
        ("[outputs,nowhere]", "nowhere is not there"),
        ("  ", "runs is empty"),
        ("[]", "empty list"),
        ("x" * 5000, "is not there"),
        ("a\0b", "is not there"),
        ("~nobody_at_all/runs", "is not there"),
    ],
)
def test_what_means_no_run_is_a_mistake(here, asked, told):
    with pytest.raises(UserError, match=told):
        find_runs(asked)
