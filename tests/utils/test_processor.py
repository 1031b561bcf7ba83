"""The name of the processor on systems without /proc."""

from pathlib import Path

import pytest

from chargpt.utils import processor as module


@pytest.mark.parametrize(("processor", "machine", "expected"), [("arm", "arm64", "arm"), ("", "arm64", "arm64")])
def test_without_proc_the_processor_is_that_of_the_platform_module(monkeypatch, processor, machine, expected):
    """As on macOS."""

    def absent(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(module.platform, "processor", lambda: processor)
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    assert module.processor_name() == expected
