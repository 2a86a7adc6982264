"""Files: whole or not there at all, each key's own, gone when their time is over."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.database import Database
from adapters.errors import InvalidRequest, NotFound, TooLarge
from adapters.files import Files, Purpose

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
    module.insert_file = die
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
