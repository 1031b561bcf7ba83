"""Checkpoint files: their checksum detects damage, and nothing in them is executed."""

import random
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from chargpt.checkpoint import torch_file
from chargpt.errors import UserError
from chargpt.inference.pretrained import load


@pytest.fixture
def content(finished: Path) -> dict:
    return torch_file.read(finished / "checkpoints" / "best.ckpt")


def save(path: Path, content: dict) -> Path:
    torch_file.save(content, path)
    return path


def test_torch_load_reads_a_file_with_a_checksum(finished):
    best = finished / "checkpoints" / "best.ckpt"
    expected, actual = torch.load(best, weights_only=True), torch_file.read(best)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected["state_dict"][name], weight) for name, weight in actual["state_dict"].items())


def test_a_flipped_bit_is_detected_anywhere(finished, tmp_path: Path):
    intact = (finished / "checkpoints" / "best.ckpt").read_bytes()
    rng, path = random.Random(0), tmp_path / "a.ckpt"
    size = len(intact)
    offsets = [rng.randrange(size) for _ in range(40)] + [size - back for back in (1, 64, 65, 70, 79, 80, 81, 90)]
    for offset in offsets:
        damaged = bytearray(intact)
        damaged[offset] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.ckpt"):
            torch_file.read(path)


def test_truncated_and_extended_files_are_detected(finished, tmp_path: Path):
    intact, path = (finished / "checkpoints" / "best.ckpt").read_bytes(), tmp_path / "a.ckpt"
    for size in (0, 1, 79, 80, len(intact) // 2, len(intact) - 80, len(intact) - 1):
        path.write_bytes(intact[:size])
        with pytest.raises(UserError, match="damaged"):
            torch_file.read(path)
    path.write_bytes(intact + b"\0")
    with pytest.raises(UserError, match="damaged"):
        torch_file.read(path)


def test_a_torch_file_of_another_program_is_refused(tmp_path: Path):
    torch.save({"state_dict": {}, "global_step": 1}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="not a chargpt checkpoint"):
        torch_file.read(tmp_path / "a.ckpt")


def test_a_checkpoint_of_0_1_has_no_checksum_but_its_damage_is_detected(content, tmp_path: Path):
    content["chargpt"]["version"] = "0.1.0"
    path = tmp_path / "old.ckpt"
    torch.save(content, path)
    assert torch_file.read(path)["global_step"] == content["global_step"]
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    damaged = bytearray(path.read_bytes())
    damaged[largest.header_offset + 200 + largest.file_size // 2] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        torch_file.read(path)


def test_a_missing_checksum_is_detected(content, tmp_path: Path):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"checksum .* is missing"):
        torch_file.read(tmp_path / "a.ckpt")


def test_a_checkpoint_of_a_later_version_is_refused(content, tmp_path: Path):
    content["chargpt"]["version"] = "7.0.1"
    with pytest.raises(UserError, match=r"written by chargpt 7\.0\.1"):
        torch_file.read(save(tmp_path / "a.ckpt", content))


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_is_not_executed(content, tmp_path: Path):
    content["callbacks"]["Curves"]["best_step"] = Malicious(tmp_path / "pwned")
    with pytest.raises(UserError, match="nothing was loaded"):
        torch_file.read(save(tmp_path / "evil.ckpt", content))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", {"_target_": "${oc.env:HOME}"}, "interpolation"),
        ("name", torch.zeros(3), "Tensor"),
        ("data", {7: "a"}, "key 7"),
    ],
)
def test_a_config_that_is_not_plain_data_is_refused(content, tmp_path: Path, key, value, message):
    content["chargpt"]["config"][key] = value
    with pytest.raises(UserError, match=message):
        torch_file.read(save(tmp_path / "evil.ckpt", content))


@pytest.mark.parametrize("group", ["model", "data"])
@pytest.mark.parametrize("value", [None, 3, "text", []])
def test_a_config_group_that_is_not_a_mapping_is_refused(content, tmp_path: Path, group, value):
    content["chargpt"]["config"][group] = value
    with pytest.raises(UserError, match=f"{group} in its config"):
        torch_file.read(save(tmp_path / "a.ckpt", content))


def test_a_target_outside_the_allow_list_is_refused(content, tmp_path: Path):
    content["chargpt"]["config"]["model"] = {"_target_": "os.makedirs", "name": str(tmp_path / "pwned")}
    with pytest.raises(UserError, match=r"os\.makedirs"):
        load(save(tmp_path / "evil.ckpt", content))
    assert not (tmp_path / "pwned").exists()


def test_a_deeply_nested_config_is_refused(content, tmp_path: Path):
    nested: list = []
    for _ in range(5000):
        nested = [nested]
    content["chargpt"]["config"]["model"] = nested
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        path = save(tmp_path / "evil.ckpt", content)
    finally:
        sys.setrecursionlimit(limit)
    with pytest.raises(UserError, match="nested too deeply"):
        torch_file.read(path)


@pytest.mark.parametrize("key", ["config", "tokenizer", "version", "corpus_sha256", "devices"])
@pytest.mark.parametrize("value", [None, torch.zeros(1), []])
def test_missing_values_and_values_of_a_wrong_type_are_refused(content, tmp_path: Path, key, value):
    content["chargpt"][key] = value
    with pytest.raises(UserError, match=key if key != "version" else "version|checksum"):
        torch_file.read(save(tmp_path / "a.ckpt", content))
