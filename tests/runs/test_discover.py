"""Run discovery: names with special characters, folders, globs and lists."""

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


def names(spec: str) -> set[str]:
    runs = find_runs(spec)
    assert len({run.resolve() for run in runs}) == len(runs)
    return {run.name for run in runs}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_special_characters_is_found_by_its_path(here, name):
    assert find_runs(f"outputs/lecture/{name}") == [Path("outputs/lecture") / name]
    assert find_runs(f"{here}/outputs/lecture/{name}/") == [here / "outputs" / "lecture" / name]


@pytest.mark.parametrize("spec", ["outputs", "outputs/lecture", "outputs/lecture/*", "out*", "outputs/**/*.json", "."])
def test_a_folder_or_a_glob_selects_all_runs_below(here, spec):
    assert names(spec) == set(NAMES)


def test_a_list_may_contain_names_with_commas_and_duplicates(here):
    folder = "outputs/lecture"
    assert names(f"[{folder}/{NAMES[0]},{folder}/{NAMES[1]}]") == set(NAMES[:2])
    assert names(f"[ '{folder}/{NAMES[0]}', {folder}/{NAMES[2]} ]") == {NAMES[0], NAMES[2]}
    assert names(f"[{folder},{folder}/{NAMES[0]},{here}/{folder}]") == set(NAMES)
    assert names(f"[{folder}/*bigram*,{folder}/a*]") == {NAMES[0], NAMES[2]}


def test_a_folder_inside_a_run_is_not_a_run(here):
    inner = here / "outputs" / "lecture" / NAMES[0] / "kept"
    inner.mkdir()
    (inner / "metrics.json").write_text("{}")
    assert names("outputs") == set(NAMES)


def test_the_common_folder_contains_all_runs_and_is_not_a_run(here):
    outputs = Path("outputs")
    assert common_folder(find_runs("outputs")) == outputs / "lecture"
    assert common_folder([outputs / "lecture" / "a"]) == outputs / "lecture"
    assert common_folder([outputs / "lecture" / "a", outputs / "b"]) == outputs
    assert common_folder([Path("/one/a"), Path("/one/two/b")]) == Path("/one")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "nowhere does not exist"),
        ("outputs/lecture/empty", r"empty contains no run"),
        ("outputs/x*", "matches nothing"),
        ("[outputs,nowhere]", "nowhere does not exist"),
        ("  ", "runs is empty"),
        ("[]", "empty list"),
        ("x" * 5000, "does not exist"),
        ("~nobody_at_all/runs", "does not exist"),
    ],
)
def test_a_path_without_runs_is_a_user_error(here, spec, message):
    with pytest.raises(UserError, match=message):
        find_runs(spec)
