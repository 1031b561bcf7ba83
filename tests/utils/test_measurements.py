"""Measurements that are kept in the user's cache folder, and the choice of the fastest option."""

import json
from pathlib import Path

import pytest

from chargpt.utils import measurements as module
from chargpt.utils.measurements import fastest, measured, processor
from tests.training.fault_injection import FakeClock


@pytest.fixture(autouse=True)
def file(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr(module, "user_cache_dir", lambda name: str(tmp_path / name))
    return tmp_path / "chargpt" / module.FILE


def is_string(known) -> bool:
    return isinstance(known, str)


def test_something_is_measured_once_on_each_processor(monkeypatch, file):
    assert measured("kernel", lambda: "a", is_string) == "a"
    assert measured("kernel", lambda: pytest.fail("measured again"), is_string) == "a"
    assert measured("another", lambda: "b", is_string) == "b"
    here = processor()
    monkeypatch.setattr(module, "processor", lambda: "another processor, or another version of torch")
    assert measured("kernel", lambda: "c", is_string) == "c"
    assert list(json.loads(file.read_text()).values()) == [{"kernel": "a", "another": "b"}, {"kernel": "c"}]
    monkeypatch.setattr(module, "processor", lambda: here)
    assert measured("kernel", lambda: pytest.fail("measured again"), is_string) == "a"


@pytest.mark.parametrize("content", ["", "[]", "{", "\0", '{"PROCESSOR": {"kernel": 3}}', '{"PROCESSOR": [1]}'])
def test_a_damaged_file_is_measured_again(file, content):
    file.parent.mkdir()
    file.write_text(content.replace("PROCESSOR", processor()))
    assert measured("kernel", lambda: "a", is_string) == "a"
    assert json.loads(file.read_text())[processor()] == {"kernel": "a"}


def test_without_a_folder_that_can_be_written_the_process_keeps_the_result(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "user_cache_dir", lambda name: str(tmp_path / "file"))
    monkeypatch.setattr(module, "_unwritten", {})
    assert measured("kernel", lambda: "a", is_string) == "a"
    assert measured("kernel", lambda: pytest.fail("measured again"), is_string) == "a", "in this process"


def test_a_measurement_that_fails_leaves_the_file_as_it_is(file):
    measured("kernel", lambda: "a", is_string)
    before = file.read_text()
    with pytest.raises(MemoryError):
        measured("another", lambda: (_ for _ in ()).throw(MemoryError), is_string)
    assert file.read_text() == before


@pytest.fixture
def options(monkeypatch):
    """`options(a=..., b=...)`: options that take these seconds, and the list of their calls."""
    calls: list[str] = []
    monkeypatch.setattr(module.time, "perf_counter", FakeClock.perf_counter)

    def take(name: str, seconds: list[float]) -> None:
        FakeClock.now += seconds[min(calls.count(name), len(seconds) - 1)]
        calls.append(name)

    def build(**times: float | list[float]):
        listed = {name: times if isinstance(times, list) else [times] for name, times in times.items()}
        return {name: lambda n=name, s=seconds: take(n, s) for name, seconds in listed.items()}, calls

    return build


def test_the_first_option_is_kept_unless_another_is_clearly_faster(options):
    assert fastest(options(a=1.0, b=0.95, c=2.0)[0]) == "a"
    assert fastest(options(a=1.0, b=0.85, c=0.8)[0]) == "c"


def test_the_fastest_call_counts(options):
    assert fastest(options(a=1.0, b=[2.0, 3.0, 0.5, 3.0])[0]) == "b"


def test_a_hopeless_option_is_called_once(options):
    works, calls = options(a=1.0, b=40.0)
    assert fastest(works) == "a"
    assert (calls.count("a"), calls.count("b")) == (1 + module.ROUNDS, 1)


def test_preparations_in_a_short_first_call_do_not_count(options):
    works, calls = options(a=1e-5, b=[2e-3, 5e-6])
    assert fastest(works) == "b"
    assert calls.count("b") == 1 + module.ROUNDS
