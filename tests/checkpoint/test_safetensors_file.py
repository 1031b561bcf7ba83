"""Safetensors files: any reader can open them, damage is detected, and nothing in them is executed."""

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from chargpt.checkpoint import safetensors_file
from chargpt.errors import UserError
from chargpt.inference.export import export_model
from chargpt.inference.pretrained import load


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    export_model(load(finished), path)
    return path


@pytest.fixture
def content(exported: Path) -> dict:
    return safetensors_file.read(exported)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.safetensors"


def assert_refused(path: Path, message: str, read=safetensors_file.read) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert len(str(error.value).splitlines()) == 1


def header_of(file: bytes) -> bytes:
    return file[8 : 8 + struct.unpack("<Q", file[:8])[0]]


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def test_read_returns_what_was_saved(content, path):
    digest = safetensors_file.save(content, path)
    again = safetensors_file.read(path)
    weights = again.pop("state_dict")
    assert all(torch.equal(weights[name], weight) for name, weight in content.pop("state_dict").items())
    assert again == content
    assert digest == safetensors_file.save(again | {"state_dict": weights}, path)


def test_the_safetensors_library_can_read_an_export(exported, content):
    weights = load_file(exported)
    assert weights.keys() == content["state_dict"].keys()
    assert all(torch.equal(weights[name], weight) for name, weight in content["state_dict"].items())
    with safe_open(exported, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"]) == content["chargpt"]["config"]
    assert json.loads(metadata["tokenizer"]) == content["chargpt"]["tokenizer"]
    assert json.loads(metadata["step"]) == content["global_step"]
    assert metadata["corpus_sha256"] == content["chargpt"]["corpus_sha256"]
    assert metadata["format"] == "pt"


def test_files_are_recognized_by_their_suffix_or_their_first_bytes(exported, finished, tmp_path):
    assert safetensors_file.is_safetensors(exported)
    (tmp_path / "other name").write_bytes(exported.read_bytes())
    assert safetensors_file.is_safetensors(tmp_path / "other name")
    assert safetensors_file.is_safetensors(tmp_path / "any.safetensors")
    assert not safetensors_file.is_safetensors(finished / "checkpoints" / "best.ckpt")
    assert not safetensors_file.is_safetensors(tmp_path / "nothing")


def test_a_flipped_bit_is_detected_anywhere(exported, path):
    intact, rng = exported.read_bytes(), random.Random(0)
    header = 8 + len(header_of(intact))
    offsets = [*range(0, 12), *range(header - 8, header + 4), len(intact) - 1]
    offsets += [rng.randrange(header) for _ in range(300)] + [rng.randrange(len(intact)) for _ in range(100)]
    for offset in offsets:
        damaged = bytearray(intact)
        damaged[offset] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert_refused(path, r"a\.safetensors is")


def test_truncated_and_extended_files_are_detected(exported, path):
    intact = exported.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, len(header_of(intact)) + 8, len(intact) // 2, len(intact) - 1):
        path.write_bytes(intact[:size])
        assert_refused(path, "damaged")
        assert_refused(path, "damaged", load)
    path.write_bytes(intact + b"\0")
    assert_refused(path, "damaged")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**40, 2**63, 2**64 - 1])
def test_an_invalid_header_length_is_refused(path, length):
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    assert_refused(path, "damaged")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b"{" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"__metadata__":{"config":1}}',
        b'{"__metadata__":[]}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        b'{"a":{"dtype":"F32","shape":[9223372036854775808,4],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"os.system","shape":[1],"data_offsets":[0,4]}}',
    ],
)
def test_an_invalid_header_is_refused(path, header):
    path.write_bytes(with_header(header, b"\0" * 4))
    assert_refused(path, "damaged")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"version": "0.2.0", "config": "{}"}])
def test_a_safetensors_file_of_another_project_is_refused(path, metadata):
    save_file({"weight": torch.zeros(3)}, path, metadata)
    assert_refused(path, "not written by chargpt: its metadata has no")


def test_metadata_without_a_digest_or_with_a_wrong_one_is_refused(content, path):
    safetensors_file.save(content, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = content["state_dict"]
    save_file(weights, path, metadata | {"step": "7"})
    assert_refused(path, "damaged: its checksum")
    save_file(weights, path, metadata | {"author": "somebody"})
    assert_refused(path, "damaged: its checksum")
    del metadata["sha256"]
    save_file(weights, path, metadata)
    assert_refused(path, "no sha256")


@pytest.mark.parametrize("key", ["config", "tokenizer", "step"])
@pytest.mark.parametrize("value", ["", "os.system('true')", "[" * 100_000, "1" * 10_000, '{"a": "\\ud8"}'])
def test_metadata_that_is_not_json_is_refused(content, path, monkeypatch, key, value):
    dumps = json.dumps

    def dumps_invalid(item, **settings):
        items = {"config": content["chargpt"]["config"], "step": content["global_step"]}
        items["tokenizer"] = content["chargpt"]["tokenizer"]
        return value if item == items[key] else dumps(item, **settings)

    monkeypatch.setattr(safetensors_file.json, "dumps", dumps_invalid)
    safetensors_file.save(content, path)
    monkeypatch.undo()
    assert_refused(path, "not valid JSON")


def test_a_file_of_a_later_version_is_refused(content, path):
    content["chargpt"]["version"] = "7.0.1"
    safetensors_file.save(content, path)
    assert_refused(path, r"written by chargpt 7\.0\.1")


@pytest.mark.parametrize("value", [None, 3, "text", []])
@pytest.mark.parametrize("key", ["config", "tokenizer", "step", "model", "data"])
def test_values_of_a_wrong_type_are_refused(content, path, key, value):
    if key == "step":
        content["global_step"] = -1 if value == 3 else value
    elif key in ("config", "tokenizer"):
        content["chargpt"][key] = value
    else:
        content["chargpt"]["config"][key] = value
    safetensors_file.save(content, path)
    assert_refused(path, key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_target_": "${oc.env:HOME}"}, "interpolation"),
        ({"_target_": "os.system", "command": "true"}, r"os\.system"),
        ({"norm": {"_target_": "builtins.exec", "_partial_": True}}, r"builtins\.exec"),
        ({"n_embd": 32}, "do not match"),
        ({"n_embd": "many"}, "n_embd|failed"),
        ({"n_embd": 2**40}, "failed"),
        ({"attention": {"_target_": "torch.nn.Identity", "_partial_": True}}, "do not match"),
    ],
)
def test_a_malicious_or_invalid_model_config_is_refused(content, path, change, message):
    content["chargpt"]["config"]["model"] |= change
    safetensors_file.save(content, path)
    assert_refused(path, message, load)


@pytest.mark.parametrize(
    "tokenizer",
    [
        {},
        {"_target_": "os.system", "command": "true"},
        {"_target_": "torch.nn.Identity"},
        {"_target_": "chargpt.data.tokenizer.CharTokenizer", "characters": 5},
        {"_target_": "chargpt.data.tokenizer.CharTokenizer", "characters": "ba"},
        {"_target_": "chargpt.data.tokenizer.CharTokenizer", "characters": ""},
    ],
)
def test_a_malicious_or_invalid_tokenizer_config_is_refused(content, path, tokenizer):
    content["chargpt"]["tokenizer"] = tokenizer
    safetensors_file.save(content, path)
    assert_refused(path, "tokenizer|vocabulary", load)


@pytest.mark.parametrize("weights", [{}, {"token_embedding.weight": torch.zeros(3)}, {"model.weight": torch.zeros(())}])
def test_weights_of_another_model_are_refused(content, path, weights):
    safetensors_file.save(content | {"state_dict": weights}, path)
    assert_refused(path, "do not match", load)


def test_a_failed_write_keeps_the_previous_file(content, path, monkeypatch):
    path.write_text("before")
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        safetensors_file.save(content, path)
    assert path.read_text() == "before"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def full_disk(handle: int) -> None:
    raise OSError(28, "No space left on device")
