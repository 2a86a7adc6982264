from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.artifacts import Artifact, ArtifactStore, digest_of
from adapters.errors import NotFound, PreflightError
from tests.lora import TINY_CONFIG, write_lora


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def staging_is_empty(store: ArtifactStore) -> bool:
    return not any((store.root / ".staging").iterdir())


def test_an_artifact_lies_under_its_digest_and_verifies(artifacts: ArtifactStore, lora: Path) -> None:
    artifact = artifacts.put_directory(lora)
    assert artifact.path == artifacts.root / artifact.digest.replace(":", "-")
    assert sorted(file.name for file in artifact.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert artifact.size_bytes == sum(file.stat().st_size for file in lora.iterdir())
    assert artifacts.verify(artifact.digest)
    assert artifacts.get(artifact.digest) == artifact
    assert artifacts.digests() == {artifact.digest}
    assert staging_is_empty(artifacts)


def test_the_digest_is_that_of_the_documented_lines(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "x", {"b": b"22", "a": b"1"})
    lines = "".join(
        f"{name}\0{len(content)}\0{hashlib.sha256(content).hexdigest()}\n"
        for name, content in (("a", b"1"), ("b", b"22"))
    )
    assert digest_of(folder) == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


names = st.text("abcdefgh._-", min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))


@given(files=st.dictionaries(names, st.binary(max_size=40), min_size=1, max_size=4), data=st.data())
def test_digests_depend_on_names_and_bytes_but_not_on_their_order(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("digests")
    digest = digest_of(write_files(folder / "one", files))
    shuffled = dict(data.draw(st.permutations(list(files.items()))))
    assert digest_of(write_files(folder / "two", shuffled)) == digest
    name = data.draw(st.sampled_from(sorted(files)))
    assert digest_of(write_files(folder / "three", files | {name: files[name] + b"!"})) != digest
    assert digest_of(write_files(folder / "four", files | {name + "x": files[name]})) != digest


def test_only_an_adapters_own_files_are_taken(artifacts: ArtifactStore, lora: Path) -> None:
    alone = artifacts.put_directory(lora)
    (lora / "README.md").write_text("hello")
    (lora / "tokenizer.json").write_text("{}")
    (lora / "checkpoint-1").mkdir()
    assert artifacts.put_directory(lora) == alone
    (lora / "burnish.json").write_text("{}")
    with_provenance = artifacts.put_directory(lora)
    assert with_provenance.digest != alone.digest
    assert (with_provenance.path / "burnish.json").exists()


def test_promise_03_an_artifact_that_is_there_is_never_written_again(
    artifacts: ArtifactStore, lora: Path
) -> None:
    first = artifacts.put_directory(lora)
    inodes = {file.name: file.stat().st_ino for file in first.path.iterdir()}
    assert artifacts.put_directory(lora) == first
    assert {file.name: file.stat().st_ino for file in first.path.iterdir()} == inodes
    assert staging_is_empty(artifacts)


def test_promise_03_other_bytes_have_another_directory(
    artifacts: ArtifactStore, lora: Path, tmp_path: Path
) -> None:
    first = artifacts.put_directory(lora)
    before = {file.name: file.read_bytes() for file in first.path.iterdir()}
    second = artifacts.put_directory(write_lora(tmp_path / "other", TINY_CONFIG, seed=1))
    assert second.path != first.path
    assert {file.name: file.read_bytes() for file in first.path.iterdir()} == before


def test_promise_03_an_artifact_does_not_follow_its_source(artifacts: ArtifactStore, lora: Path) -> None:
    artifact = artifacts.put_directory(lora)
    with (lora / "adapter_model.safetensors").open("r+b") as file:
        file.write(b"overwritten in place")
    assert artifacts.verify(artifact.digest)


@pytest.mark.parametrize("damage", ["flip", "truncate", "add", "remove"])
def test_damage_is_found(artifacts: ArtifactStore, lora: Path, damage: str) -> None:
    artifact = artifacts.put_directory(lora)
    weights = artifact.path / "adapter_model.safetensors"
    content = weights.read_bytes()
    match damage:
        case "flip":
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "truncate":
            weights.write_bytes(content[:-1])
        case "add":
            (artifact.path / "more").write_bytes(b"")
        case "remove":
            weights.unlink()
    assert not artifacts.verify(artifact.digest)


def test_many_writers_of_the_same_files_make_one_artifact(artifacts: ArtifactStore, lora: Path) -> None:
    results: list[Artifact] = []
    threads = [
        threading.Thread(target=lambda: results.append(artifacts.put_directory(lora))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(results)) == len(artifacts.digests()) == 1
    assert staging_is_empty(artifacts)


def test_a_copy_that_is_not_published_goes_away(artifacts: ArtifactStore, lora: Path) -> None:
    with artifacts.stage(lora) as staged:
        assert (staged.path / "adapter_config.json").exists()
    assert artifacts.digests() == frozenset()
    assert staging_is_empty(artifacts)


def test_links_and_what_is_no_file_are_refused(artifacts: ArtifactStore, lora: Path, tmp_path: Path) -> None:
    weights = lora / "adapter_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PreflightError, match=r"adapter_model\.safetensors: is a link"):
        artifacts.put_directory(lora)
    weights.unlink()
    os.mkfifo(weights)  # opening one for reading would wait for ever
    with pytest.raises(PreflightError, match=r"adapter_model\.safetensors: is not a plain file"):
        artifacts.put_directory(lora)
    weights.unlink()
    with pytest.raises(PreflightError, match=r"adapter_model\.safetensors: there is no such file"):
        artifacts.put_directory(lora)
    assert staging_is_empty(artifacts)


def test_deleting_takes_the_whole_artifact_and_twice_is_no_error(
    artifacts: ArtifactStore, lora: Path
) -> None:
    artifact = artifacts.put_directory(lora)
    artifacts.delete(artifact.digest)
    artifacts.delete(artifact.digest)
    assert not artifacts.exists(artifact.digest)
    assert not artifacts.verify(artifact.digest)
    assert staging_is_empty(artifacts)
    with pytest.raises(NotFound):
        artifacts.get(artifact.digest)


def test_only_abandoned_staging_is_cleaned(artifacts: ArtifactStore, lora: Path) -> None:
    old = artifacts.root / ".staging" / "old"
    write_files(old, {"adapter_config.json": b"{"})
    os.utime(old, (time.time() - 7200,) * 2)
    with artifacts.stage(lora) as staged:
        assert artifacts.clean_staging() == 1
        assert staged.publish().digest in artifacts.digests()
    assert not old.exists()


def test_unused_artifacts_are_deleted_only_when_old(
    artifacts: ArtifactStore, lora: Path, tmp_path: Path
) -> None:
    used = artifacts.put_directory(lora).digest
    unused = artifacts.put_directory(write_lora(tmp_path / "other", TINY_CONFIG, seed=1)).digest
    assert artifacts.delete_unused({used}) == 0
    assert artifacts.delete_unused({used}, older_than_seconds=0) == 1
    assert artifacts.digests() == {used}
    assert not artifacts.exists(unused)


@pytest.mark.parametrize("digest", ["sha256:../../etc", "sha256:" + "A" * 64, "md5:" + "0" * 64, ""])
def test_what_is_no_digest_has_no_path(artifacts: ArtifactStore, digest: str) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        artifacts.path(digest)
