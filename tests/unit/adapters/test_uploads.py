"""Uploads: parts become one file or none, whoever sends them and whenever they end."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters import uploads as module
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest, NotFound
from adapters.files import Files, StoredFile
from adapters.uploads import Uploads, UploadStatus


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def files(db: Database, root: Path) -> Files:
    return Files(db, root)


@pytest.fixture
def uploads(db: Database, files: Files) -> Uploads:
    return Uploads(db, files)


def on_disk(root: Path) -> list[str]:
    """The names of all plain files under the root."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def part(
    uploads: Uploads, files: Files, upload: str, data: bytes, key_id: str | None = None, now: float = 2.0
) -> str:
    with files.stage(module.MAX_PART_BYTES) as staged:
        staged.write(data)
        return uploads.add_part(upload, staged, key_id, now=now)


def test_parts_are_joined_in_the_order_of_the_completion(uploads: Uploads, files: Files, root: Path) -> None:
    upload = uploads.start("big.jsonl", "fine-tune", 9, "key_1", expires_seconds=7200, now=1.0)
    assert (upload.status, upload.expires) == (UploadStatus.PENDING, 3601.0)
    last, first = (part(uploads, files, upload.id, data, "key_1") for data in (b"6789", b"12345"))
    done, file = uploads.complete(
        upload.id, [first, last], hashlib.md5(b"123456789").hexdigest().upper(), "key_1", now=5.0
    )
    assert (done.status, done.file_id) == (UploadStatus.COMPLETED, file.id)
    assert files.path(file.id, now=6.0).read_bytes() == b"123456789"
    assert (file.filename, file.key_id, file.expires) == ("big.jsonl", "key_1", 7205.0)
    assert on_disk(root) == [file.id], "the parts are gone"
    assert uploads.get(upload.id, "key_1", now=99999.0).status is UploadStatus.COMPLETED


def test_a_wrong_completion_can_be_put_right(uploads: Uploads, files: Files) -> None:
    upload = uploads.start("x", "fine-tune", 4, None, now=1.0)
    a, b = part(uploads, files, upload.id, b"12"), part(uploads, files, upload.id, b"34")
    wrong: list[tuple[list[str], str | None, str]] = [
        ([], None, "invalid_value"),
        ([a, a], None, "invalid_value"),
        ([a, "part_none"], None, "invalid_value"),
        ([a], None, "upload_size_mismatch"),
        ([b, a], hashlib.md5(b"1234").hexdigest(), "upload_checksum_mismatch"),
    ]
    for parts, md5, code in wrong:
        with pytest.raises(InvalidRequest) as caught:
            uploads.complete(upload.id, parts, md5, None, now=2.0)
        assert caught.value.code == code
    assert uploads.complete(upload.id, [a, b], None, None, now=2.0)[1].size_bytes == 4


def test_an_upload_ends_once(uploads: Uploads, files: Files, root: Path) -> None:
    for end in ("complete", "cancel", "expire"):
        upload = uploads.start("x", "fine-tune", 1, None, now=1.0)
        one = part(uploads, files, upload.id, b"1")
        now = 2.0
        if end == "complete":
            uploads.complete(upload.id, [one], None, None, now=now)
        elif end == "cancel":
            assert uploads.cancel(upload.id, None, now=now).status is UploadStatus.CANCELLED
        else:
            now = 3601.0
            assert uploads.get(upload.id, None, now=now).status is UploadStatus.EXPIRED
            assert uploads.purge_expired(now) == 1
        for again in (
            lambda id=upload.id, now=now: part(uploads, files, id, b"2", now=now),
            lambda id=upload.id, now=now, one=one: uploads.complete(id, [one], None, None, now=now),
            lambda id=upload.id, now=now: uploads.cancel(id, None, now=now),
        ):
            with pytest.raises(Conflict) as caught:
                again()
            assert caught.value.code == "upload_state_conflict"
    assert len(on_disk(root)) == 1


def test_foreign_uploads_are_not_there(uploads: Uploads, files: Files) -> None:
    upload = uploads.start("x", "fine-tune", 1, "key_1", now=1.0)
    for ask in (
        lambda: uploads.get(upload.id, "key_2"),
        lambda: part(uploads, files, upload.id, b"1", "key_2"),
        lambda: uploads.complete(upload.id, ["part_x"], None, "key_2"),
        lambda: uploads.cancel(upload.id, "key_2"),
    ):
        with pytest.raises(NotFound) as caught:
            ask()
        assert caught.value.code == "upload_not_found"


def test_parts_that_come_at_once_are_all_there(uploads: Uploads, files: Files) -> None:
    upload = uploads.start("x", "fine-tune", 20, None, now=1.0)
    with ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(lambda n: part(uploads, files, upload.id, b"%02d" % n), range(10)))
    _, file = uploads.complete(upload.id, parts, None, None, now=2.0)
    assert files.path(file.id).read_bytes() == b"".join(b"%02d" % n for n in range(10))


def test_an_upload_completed_twice_at_once_is_one_file(uploads: Uploads, files: Files, root: Path) -> None:
    upload = uploads.start("x", "fine-tune", 2, None, now=1.0)
    one = part(uploads, files, upload.id, b"12")

    def complete(_: int) -> StoredFile | None:
        try:
            return uploads.complete(upload.id, [one], None, None, now=2.0)[1]
        except Conflict:
            return None

    with ThreadPoolExecutor(4) as pool:
        done = [file for file in pool.map(complete, range(4)) if file is not None]
    assert len(done) == 1
    assert on_disk(root) == [done[0].id]


def test_sizes_are_bounded(uploads: Uploads, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (0, -1, module.MAX_UPLOAD_BYTES + 1):
        with pytest.raises(InvalidRequest):
            uploads.start("x", "fine-tune", size, None)
    monkeypatch.setattr(module, "MAX_PARTS", 2)
    upload = uploads.start("x", "fine-tune", 9, None, now=1.0)
    for _ in range(2):
        part(uploads, files, upload.id, b"1")
    with pytest.raises(InvalidRequest) as caught:
        part(uploads, files, upload.id, b"1")
    assert caught.value.code == "upload_too_large"


def test_parts_that_a_crash_has_left_are_swept_and_others_are_not(
    uploads: Uploads, files: Files, root: Path
) -> None:
    pending = uploads.start("x", "fine-tune", 1, None, now=1.0)
    kept = part(uploads, files, pending.id, b"1")
    left = root / ".parts" / "upload_gone"
    left.mkdir()
    (left / "part_1").write_bytes(b"1")
    assert uploads.sweep() == 0, "what may still be in the making is left alone"
    for path in root.rglob("*"):
        os.utime(path, (0, 0))
    assert uploads.sweep() == 1
    assert on_disk(root) == [f".parts/{pending.id}/{kept}"]
