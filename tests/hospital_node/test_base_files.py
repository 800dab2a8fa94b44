"""Base model files: found, hashed in a way a person can repeat, and never run."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hospital_node.trainer.base_files import base_hash, find_base, parameter_count, weight_files
from hospital_node.trainer.errors import Refusal
from protocol.site import SiteModelSettings

from .lab import build_model


def test_one_file_hashes_as_sha256sum(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """The hash of an unsharded base is its file's."""
    folder = bases("llama")
    expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert base_hash(folder, tmp_path) == expected


def test_shards_hash_as_the_documented_command(tmp_path: Path) -> None:
    """The command in the module's text gives the hash, whatever the shards are called."""
    folder = build_model("gpt2", tmp_path / "base", shards=True)
    assert len(weight_files(folder)) > 1
    command = "sha256sum model-*.safetensors | cut -c1-64 | LC_ALL=C sort | sha256sum | cut -c1-64"
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, check=True
    )
    assert base_hash(folder, tmp_path / "cache") == done.stdout.strip()
    single = build_model("gpt2", tmp_path / "single")
    assert parameter_count(folder) == parameter_count(single)


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    """The kept hash belongs to a size and a time; a touched file is read again."""
    folder, cache = build_model("gpt2", tmp_path / "base"), tmp_path / "cache"
    first = base_hash(folder, cache)
    file = folder / "model.safetensors"
    data, stat = bytearray(file.read_bytes()), file.stat()
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert base_hash(folder, cache) == first, "kept: same size and time"
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert base_hash(folder, cache) != first


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "only safetensors weights are loaded"),
        ({"pytorch_model.bin": b"x"}, "a .bin file can run code"),
        ({"model.safetensors.index.json": b"{}"}, "not a readable index"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"w": "a.safetensors"}}'},
            "1 shard(s) missing: ['a.safetensors']",
        ),
        ({"model.safetensors": b"\xff" * 64}, "not a readable safetensors file"),
        ({"model.safetensors": b"\x02\0\0\0\0\0\0\0{}"[:9]}, "not a readable safetensors file"),
    ],
)
def test_unusable_directories_are_sentences(
    tmp_path: Path, files: dict[str, bytes], sentence: str
) -> None:
    """Missing, foreign or damaged weights are told apart."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refusal) as caught:
        parameter_count(tmp_path)
    assert sentence in str(caught.value)


def test_an_index_cannot_point_outside(tmp_path: Path) -> None:
    """A shard's name is taken as a name, not as a path."""
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    folder = tmp_path / "base"
    folder.mkdir()
    index = '{"weight_map": {"w": "../secret.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(Refusal, match="missing"):
        weight_files(folder)


def test_the_sites_own_path_wins(tmp_path: Path) -> None:
    """Whatever the study calls its base, model.path is used; a wrong one is named."""
    assert find_base("org/model", SiteModelSettings(path=tmp_path)) == tmp_path
    with pytest.raises(Refusal, match="there is no such directory"):
        find_base(str(tmp_path), SiteModelSettings(path=tmp_path / "gone"))


def test_no_download_unless_the_site_allows_it() -> None:
    """A hub id is refused with the two settings that would help."""
    with pytest.raises(Refusal, match=r"model\.path in site\.toml.*model\.allow_hub = true"):
        find_base("org/model", SiteModelSettings())


def test_a_hub_that_cannot_be_reached_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With downloads allowed, a model that cannot be had is refused by name, in one line."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Refusal, match="cannot be had from the hub") as caught:
        find_base("fedward-test/no-such-model", SiteModelSettings(allow_hub=True))
    assert "\n" not in str(caught.value)


def test_only_safetensors_and_text_are_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No pickled weights and no code come from the hub."""
    asked: list[list[str]] = []

    def download(_: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_base("org/model", SiteModelSettings(allow_hub=True)) == tmp_path
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in asked[0])
