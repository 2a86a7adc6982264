"""Files and uploads: whole or not there at all, each key's own, gone when their time is over."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters import files as module
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest, NotFound, TooLarge
from adapters.files import Files, Purpose, StoredFile, UploadStatus

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def files(db: Database, root: Path) -> Files:
    return Files(db, root)


def on_disk(root: Path) -> list[str]:
    """The names of all plain files under the root."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def part(files: Files, upload: str, data: bytes, key_id: str | None = None, now: float = 2.0) -> str:
    with files.stage(module.MAX_PART_BYTES) as staged:
        staged.write(data)
        return files.add_part(upload, staged, key_id, now=now)


def test_a_file_is_what_was_sent(files: Files, root: Path) -> None:
    file = files.put(io.BytesIO(b"hello"), "train.jsonl", "fine-tune", "key_1", now=5.0)
    digest = "sha256:" + hashlib.sha256(b"hello").hexdigest()
    assert (file.filename, file.size_bytes, file.digest, file.created, file.expires) == (
        "train.jsonl",
        5,
        digest,
        5.0,
        None,
    )
    assert files.path(file.id).read_bytes() == b"hello"
    found = files.get(file.id, "key_1", all_keys=False)
    assert (found.id, found.purpose) == (file.id, Purpose.FINE_TUNE)
    assert on_disk(root) == [file.id]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\evil\\x.jsonl", "x.jsonl"),
        ("a\r\nset-cookie: x", "a__set-cookie: x"),
        ("nul\x00byte", "nul_byte"),
        ("\ud800", "_"),
        ("\x1b[31mred", "_[31mred"),
        ("..", ".."),
        ("/", "file"),
        ("", "file"),
        ("x" * 1000, "x" * 255),
        ("данные.jsonl", "данные.jsonl"),
    ],
)
def test_a_hostile_name_is_a_label_and_no_path(files: Files, root: Path, name: str, label: str) -> None:
    file = files.put(b"x", name, "user_data", None)
    assert files.get(file.id).filename == label
    assert on_disk(root) == [file.id]


def test_keys_see_their_own_files(files: Files) -> None:
    mine, foreign = files.put(b"a", "a", "fine-tune", "key_1"), files.put(b"b", "b", "fine-tune", "key_2")
    assert [file.id for file in files.list("key_1", all_keys=False)[0]] == [mine.id]
    with pytest.raises(NotFound) as caught:
        files.get(foreign.id, "key_1", all_keys=False)
    with pytest.raises(NotFound) as unknown:
        files.get(foreign.id.replace("file-", "file-0"), "key_1", all_keys=False)
    assert caught.value.code == unknown.value.code == "file_not_found"
    with pytest.raises(NotFound):
        files.delete(foreign.id, "key_1", all_keys=False)
    assert files.get(foreign.id).key_id == "key_2"


@pytest.mark.parametrize("id", ["", "..", "../burnish.db", "file-\x00", "\ud800", ".staging"])
def test_no_id_leads_out_of_the_folder(files: Files, id: str) -> None:
    for ask in (files.get, files.path, files.delete):
        with pytest.raises(NotFound):
            ask(id)


def test_pages_go_both_ways_and_by_purpose(files: Files) -> None:
    made = [files.put(b"x", f"{n}", "fine-tune" if n % 2 else "vision", "key_1") for n in range(5)]
    page, more = files.list("key_1", all_keys=False, limit=2)
    assert ([file.id for file in page], more) == ([made[4].id, made[3].id], True)
    rest, more = files.list("key_1", all_keys=False, limit=9, after=page[-1].id)
    assert ([file.id for file in rest], more) == ([file.id for file in made[2::-1]], False)
    oldest, _ = files.list("key_1", all_keys=False, newest_first=False, after=made[0].id, purpose="vision")
    assert [file.id for file in oldest] == [made[2].id, made[4].id]
    with pytest.raises(InvalidRequest):
        files.list("key_1", all_keys=False, after="file-none")


def test_expired_files_are_gone_at_once_and_their_bytes_soon(files: Files, root: Path) -> None:
    kept = files.put(b"a", "a", "fine-tune", None, now=0.0)
    short = files.put(b"b", "b", "fine-tune", None, expires_seconds=3600, now=0.0)
    batch = files.put(b"c", "c", "batch", None, now=0.0)
    assert (short.expires, batch.expires) == (3600.0, 30 * 86400.0)
    with pytest.raises(NotFound):
        files.get(short.id, now=3600.0)
    assert [file.id for file in files.list(now=3600.0)[0]] == [batch.id, kept.id]
    assert files.purge_expired(now=3600.0) == 1
    assert on_disk(root) == sorted([kept.id, batch.id])
    assert files.purge_expired(now=3600.0) == 0


def test_deleting_takes_row_and_bytes(files: Files, root: Path) -> None:
    file = files.put(b"a", "a", "fine-tune", None)
    assert files.delete(file.id).id == file.id
    assert on_disk(root) == []
    with pytest.raises(NotFound):
        files.delete(file.id)


def test_what_is_refused_leaves_nothing(files: Files, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        files.put(b"", "a", "fine-tune", None)
    with pytest.raises(InvalidRequest) as caught:
        files.put(b"x", "a", "nonsense", None)
    assert caught.value.param == "purpose"
    with pytest.raises(TooLarge), files.stage(limit=4) as staged:
        staged.write(b"12")
        staged.write(b"345")
    assert on_disk(root) == []
    assert files.list() == ((), False)


def test_parts_are_joined_in_the_order_of_the_completion(files: Files, root: Path) -> None:
    upload = files.start("big.jsonl", "fine-tune", 9, "key_1", expires_seconds=7200, now=1.0)
    assert (upload.status, upload.expires) == (UploadStatus.PENDING, 3601.0)
    last, first = (part(files, upload.id, data, "key_1") for data in (b"6789", b"12345"))
    done, file = files.complete(
        upload.id, [first, last], hashlib.md5(b"123456789").hexdigest().upper(), "key_1", now=5.0
    )
    assert (done.status, done.file_id) == (UploadStatus.COMPLETED, file.id)
    assert files.path(file.id, now=6.0).read_bytes() == b"123456789"
    assert (file.filename, file.key_id, file.expires) == ("big.jsonl", "key_1", 7205.0)
    assert on_disk(root) == [file.id], "the parts are gone"
    assert files.upload(upload.id, "key_1", now=99999.0).status is UploadStatus.COMPLETED


def test_a_wrong_completion_can_be_put_right(files: Files) -> None:
    upload = files.start("x", "fine-tune", 4, None, now=1.0)
    a, b = part(files, upload.id, b"12"), part(files, upload.id, b"34")
    wrong: list[tuple[list[str], str | None, str]] = [
        ([], None, "invalid_value"),
        ([a, a], None, "invalid_value"),
        ([a, "part_none"], None, "invalid_value"),
        ([a], None, "upload_size_mismatch"),
        ([b, a], hashlib.md5(b"1234").hexdigest(), "upload_checksum_mismatch"),
    ]
    for parts, md5, code in wrong:
        with pytest.raises(InvalidRequest) as caught:
            files.complete(upload.id, parts, md5, None, now=2.0)
        assert caught.value.code == code
    assert files.complete(upload.id, [a, b], None, None, now=2.0)[1].size_bytes == 4


def test_an_upload_ends_once(files: Files, root: Path) -> None:
    for end in ("complete", "cancel", "expire"):
        upload = files.start("x", "fine-tune", 1, None, now=1.0)
        one = part(files, upload.id, b"1")
        now = 2.0
        if end == "complete":
            files.complete(upload.id, [one], None, None, now=now)
        elif end == "cancel":
            assert files.cancel(upload.id, None, now=now).status is UploadStatus.CANCELLED
        else:
            now = 3601.0
            assert files.upload(upload.id, None, now=now).status is UploadStatus.EXPIRED
            assert files.purge_expired(now) == 1
        for again in (
            lambda id=upload.id, now=now: part(files, id, b"2", now=now),
            lambda id=upload.id, now=now, one=one: files.complete(id, [one], None, None, now=now),
            lambda id=upload.id, now=now: files.cancel(id, None, now=now),
        ):
            with pytest.raises(Conflict) as caught:
                again()
            assert caught.value.code == "upload_state_conflict"
    assert len(on_disk(root)) == 1


def test_foreign_uploads_are_not_there(files: Files) -> None:
    upload = files.start("x", "fine-tune", 1, "key_1", now=1.0)
    for ask in (
        lambda: files.upload(upload.id, "key_2"),
        lambda: part(files, upload.id, b"1", "key_2"),
        lambda: files.complete(upload.id, ["part_x"], None, "key_2"),
        lambda: files.cancel(upload.id, "key_2"),
    ):
        with pytest.raises(NotFound) as caught:
            ask()
        assert caught.value.code == "upload_not_found"


def test_parts_that_come_at_once_are_all_there(files: Files) -> None:
    upload = files.start("x", "fine-tune", 20, None, now=1.0)
    with ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(lambda n: part(files, upload.id, b"%02d" % n), range(10)))
    _, file = files.complete(upload.id, parts, None, None, now=2.0)
    assert files.path(file.id).read_bytes() == b"".join(b"%02d" % n for n in range(10))


def test_an_upload_completed_twice_at_once_is_one_file(files: Files, root: Path) -> None:
    upload = files.start("x", "fine-tune", 2, None, now=1.0)
    one = part(files, upload.id, b"12")

    def complete(_: int) -> StoredFile | None:
        try:
            return files.complete(upload.id, [one], None, None, now=2.0)[1]
        except Conflict:
            return None

    with ThreadPoolExecutor(4) as pool:
        done = [file for file in pool.map(complete, range(4)) if file is not None]
    assert len(done) == 1
    assert on_disk(root) == [done[0].id]


def test_sizes_are_bounded(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (0, -1, module.MAX_UPLOAD_BYTES + 1):
        with pytest.raises(InvalidRequest):
            files.start("x", "fine-tune", size, None)
    monkeypatch.setattr(module, "MAX_PARTS", 2)
    upload = files.start("x", "fine-tune", 9, None, now=1.0)
    for _ in range(2):
        part(files, upload.id, b"1")
    with pytest.raises(InvalidRequest) as caught:
        part(files, upload.id, b"1")
    assert caught.value.code == "upload_too_large"


KILLED = """
import os, signal, sys
from pathlib import Path
from adapters import files as module
from adapters.database import Database
db = Database(sys.argv[1])
files = module.Files(db, Path(sys.argv[2]))
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "rename":
    os.fsync = die
else:
    module._insert_file = die
files.put(b"x" * 100000, "x", "fine-tune", None)
"""


@pytest.mark.parametrize("where", ["rename", "row"])
def test_promise_08_a_crash_leaves_no_half_file(
    files: Files, database_url: str, root: Path, where: str
) -> None:
    kept = files.put(b"a", "a", "fine-tune", None)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, database_url, str(root), where], cwd=ROOT, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert [file.id for file in files.list()[0]] == [kept.id]
    assert len(on_disk(root)) == 2
    assert files.sweep() == 0, "what may still be in the making is left alone"
    for path in root.rglob("*"):
        os.utime(path, (0, 0))
    assert files.sweep() == 1
    assert on_disk(root) == [kept.id]
