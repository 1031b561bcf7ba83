"""Checkpoint files: sealed, so that damage is seen; plain data, so that nothing in them is ever an order."""

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


def written(path: Path, content: dict) -> Path:
    torch_file.save(content, path)
    return path


def test_torch_reads_a_sealed_file_as_any_other(finished):
    best = finished / "checkpoints" / "best.ckpt"
    plain, ours = torch.load(best, weights_only=True), torch_file.read(best)
    assert plain.keys() == ours.keys()
    assert all(torch.equal(plain["state_dict"][name], weight) for name, weight in ours["state_dict"].items())


def test_a_flipped_bit_is_seen_wherever_it_is(finished, tmp_path: Path):
    whole = (finished / "checkpoints" / "best.ckpt").read_bytes()
    draw, path = random.Random(0), tmp_path / "a.ckpt"
    size = len(whole)
    places = [draw.randrange(size) for _ in range(40)] + [size - back for back in (1, 64, 65, 70, 79, 80, 81, 90)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.ckpt"):
            torch_file.read(path)


def test_a_cut_or_a_longer_file_is_seen(finished, tmp_path: Path):
    whole, path = (finished / "checkpoints" / "best.ckpt").read_bytes(), tmp_path / "a.ckpt"
    for size in (0, 1, 79, 80, len(whole) // 2, len(whole) - 80, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="damaged"):
            torch_file.read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="damaged"):
        torch_file.read(path)


def test_another_file_of_torchs_is_not_one_of_ours(tmp_path: Path):
    torch.save({"state_dict": {}, "global_step": 1}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of this bench"):
        torch_file.read(tmp_path / "a.ckpt")


def test_a_checkpoint_from_before_there_were_seals_is_read_and_its_damage_is_seen(content, tmp_path: Path):
    content["chargpt"]["version"] = "0.1.0"
    path = tmp_path / "old.ckpt"
    torch.save(content, path)
    assert torch_file.read(path)["global_step"] == content["global_step"]
    with zipfile.ZipFile(path) as archive:
        place = max(archive.infolist(), key=lambda record: record.file_size)
    damaged = bytearray(path.read_bytes())
    damaged[place.header_offset + 200 + place.file_size // 2] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        torch_file.read(path)


def test_a_seal_that_is_gone_is_missed(content, tmp_path: Path):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="digest, which is gone"):
        torch_file.read(tmp_path / "a.ckpt")


def test_a_later_versions_checkpoint_says_so(content, tmp_path: Path):
    content["chargpt"]["version"] = "7.0.1"
    with pytest.raises(UserError, match=r"written by chargpt 7\.0\.1"):
        torch_file.read(written(tmp_path / "a.ckpt", content))


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_is_not_run(content, tmp_path: Path):
    content["callbacks"]["Curves"]["best_step"] = Evil(tmp_path / "pwned")
    with pytest.raises(UserError, match="nothing was loaded"):
        torch_file.read(written(tmp_path / "evil.ckpt", content))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("model", {"_target_": "${oc.env:HOME}"}, "looked up"),
        ("name", torch.zeros(3), "Tensor"),
        ("data", {7: "a"}, "key 7"),
    ],
)
def test_a_config_is_data_and_never_an_order(content, tmp_path: Path, place, value, told):
    content["chargpt"]["config"][place] = value
    with pytest.raises(UserError, match=told):
        torch_file.read(written(tmp_path / "evil.ckpt", content))


@pytest.mark.parametrize("group", ["model", "data"])
@pytest.mark.parametrize("value", [None, 3, "text", []])
def test_a_group_of_a_config_that_is_none_is_told(content, tmp_path: Path, group, value):
    content["chargpt"]["config"][group] = value
    with pytest.raises(UserError, match=f"{group} in its config"):
        torch_file.read(written(tmp_path / "a.ckpt", content))


def test_a_config_that_names_something_else_is_refused(content, tmp_path: Path):
    content["chargpt"]["config"]["model"] = {"_target_": "os.makedirs", "name": str(tmp_path / "pwned")}
    with pytest.raises(UserError, match=r"os\.makedirs"):
        load(written(tmp_path / "evil.ckpt", content))
    assert not (tmp_path / "pwned").exists()


def test_a_config_without_a_bottom_is_refused(content, tmp_path: Path):
    nest: list = []
    for _ in range(5000):
        nest = [nest]
    content["chargpt"]["config"]["model"] = nest
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        path = written(tmp_path / "evil.ckpt", content)
    finally:
        sys.setrecursionlimit(limit)
    with pytest.raises(UserError, match="no bottom"):
        torch_file.read(path)


@pytest.mark.parametrize("key", ["config", "tokenizer", "version", "corpus_sha256", "devices"])
@pytest.mark.parametrize("value", [None, torch.zeros(1), []])
def test_what_is_missing_or_of_a_wrong_type_is_told(content, tmp_path: Path, key, value):
    content["chargpt"][key] = value
    with pytest.raises(UserError, match=key if key != "version" else "version|seal"):
        torch_file.read(written(tmp_path / "a.ckpt", content))
