"""Weights files: any reader of safetensors opens them, damage is seen, and nothing in them is ever an order."""

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
from chargpt.inference.pretrained import load


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from chargpt.inference.export import export_model

    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    export_model(load(finished), path)
    return path


@pytest.fixture
def content(exported: Path) -> dict:
    return safetensors_file.read(exported)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.safetensors"


def refuses(path: Path, told: str, act=safetensors_file.read) -> None:
    with pytest.raises(UserError, match=told) as refused:
        act(path)
    assert len(str(refused.value).splitlines()) == 1


def header_of(whole: bytes) -> bytes:
    return whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]]


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def test_what_is_saved_is_read(content, path):
    digest = safetensors_file.save(content, path)
    again = safetensors_file.read(path)
    weights = again.pop("state_dict")
    assert all(torch.equal(weights[name], weight) for name, weight in content.pop("state_dict").items())
    assert again == content
    assert digest == safetensors_file.save(again | {"state_dict": weights}, path)


def test_safetensors_reads_it_without_us(exported, content):
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


def test_it_is_known_by_its_name_or_its_beginning(exported, finished, tmp_path):
    assert safetensors_file.is_safetensors(exported)
    (tmp_path / "other name").write_bytes(exported.read_bytes())
    assert safetensors_file.is_safetensors(tmp_path / "other name")
    assert safetensors_file.is_safetensors(tmp_path / "any.safetensors")
    assert not safetensors_file.is_safetensors(finished / "checkpoints" / "best.ckpt")
    assert not safetensors_file.is_safetensors(tmp_path / "nothing")


def test_a_flipped_bit_is_seen_wherever_it_is(exported, path):
    whole, draw = exported.read_bytes(), random.Random(0)
    header = 8 + len(header_of(whole))
    places = [*range(0, 12), *range(header - 8, header + 4), len(whole) - 1]
    places += [draw.randrange(header) for _ in range(300)] + [draw.randrange(len(whole)) for _ in range(100)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        refuses(path, r"a\.safetensors is")


def test_a_cut_or_a_longer_file_is_seen(exported, path):
    whole = exported.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, len(header_of(whole)) + 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refuses(path, "damaged")
        refuses(path, "damaged", load)
    path.write_bytes(whole + b"\0")
    refuses(path, "damaged")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**40, 2**63, 2**64 - 1])
def test_a_length_of_the_header_that_cannot_be_is_refused(path, length):
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    refuses(path, "damaged")


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
def test_a_header_of_nonsense_is_refused(path, header):
    path.write_bytes(with_header(header, b"\0" * 4))
    refuses(path, "damaged")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"version": "0.2.0", "config": "{}"}])
def test_a_safetensors_file_of_another_project_is_not_one_of_ours(path, metadata):
    save_file({"weight": torch.zeros(3)}, path, metadata)
    refuses(path, "not one of this bench: its metadata has no")


def test_metadata_without_the_digest_or_with_another_is_refused(content, path):
    safetensors_file.save(content, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = content["state_dict"]
    save_file(weights, path, metadata | {"step": "7"})
    refuses(path, "damaged: its digest")
    save_file(weights, path, metadata | {"author": "somebody"})
    refuses(path, "damaged: its digest")
    del metadata["sha256"]
    save_file(weights, path, metadata)
    refuses(path, "no sha256")


@pytest.mark.parametrize("key", ["config", "tokenizer", "step"])
@pytest.mark.parametrize("value", ["", "os.system('true')", "[" * 100_000, "1" * 10_000, '{"a": "\\ud8"}'])
def test_metadata_that_is_no_json_is_refused(content, path, monkeypatch, key, value):
    dumps = json.dumps

    def forged(given, **settings):
        asked = {"config": content["chargpt"]["config"], "step": content["global_step"]}
        asked["tokenizer"] = content["chargpt"]["tokenizer"]
        return value if given == asked[key] else dumps(given, **settings)

    monkeypatch.setattr(safetensors_file.json, "dumps", forged)
    safetensors_file.save(content, path)
    monkeypatch.undo()
    refuses(path, "no JSON")


def test_a_later_versions_file_says_so(content, path):
    content["chargpt"]["version"] = "7.0.1"
    safetensors_file.save(content, path)
    refuses(path, r"written by chargpt 7\.0\.1")


@pytest.mark.parametrize("value", [None, 3, "text", []])
@pytest.mark.parametrize("key", ["config", "tokenizer", "step", "model", "data"])
def test_what_is_of_a_wrong_type_is_told(content, path, key, value):
    if key == "step":
        content["global_step"] = -1 if value == 3 else value
    elif key in ("config", "tokenizer"):
        content["chargpt"][key] = value
    else:
        content["chargpt"]["config"][key] = value
    safetensors_file.save(content, path)
    refuses(path, key)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"_target_": "${oc.env:HOME}"}, "looked up"),
        ({"_target_": "os.system", "command": "true"}, r"os\.system"),
        ({"norm": {"_target_": "builtins.exec", "_partial_": True}}, r"builtins\.exec"),
        ({"n_embd": 32}, "do not fit"),
        ({"n_embd": "many"}, "n_embd|failed"),
        ({"n_embd": 2**40}, "failed"),
        ({"attention": {"_target_": "torch.nn.Identity", "_partial_": True}}, "do not fit"),
    ],
)
def test_a_hostile_model_is_refused(content, path, change, told):
    content["chargpt"]["config"]["model"] |= change
    safetensors_file.save(content, path)
    refuses(path, told, load)


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
def test_a_hostile_vocabulary_is_refused(content, path, tokenizer):
    content["chargpt"]["tokenizer"] = tokenizer
    safetensors_file.save(content, path)
    refuses(path, "tokenizer|vocabulary", load)


@pytest.mark.parametrize("weights", [{}, {"token_embedding.weight": torch.zeros(3)}, {"model.weight": torch.zeros(())}])
def test_other_weights_do_not_fit(content, path, weights):
    safetensors_file.save(content | {"state_dict": weights}, path)
    refuses(path, "do not fit", load)


def test_a_file_that_cannot_be_written_leaves_what_was_there(content, path, monkeypatch):
    path.write_text("before")
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        safetensors_file.save(content, path)
    assert path.read_text() == "before"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def full_disk(handle: int) -> None:
    raise OSError(28, "No space left on device")
