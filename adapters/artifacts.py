"""The artifact store: adapters' files in directories that bear their digest.

Owns staging, fsync, digests and the rename that makes an artifact appear whole or not at all (promises 3 and 8).
Does not know what is in the files (`preflight` does) nor which version uses them (`registry` does).

    root/sha256-<64 hex>/    an artifact; never written again
    root/.staging/<random>/  one that is being made, or deleted; a crash leaves it here, `clean_staging` takes it away
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import NotFound, PreflightError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PROVENANCE_FILE = "burnish.json"  # optional: where the adapter comes from

REQUIRED_FILES = (CONFIG_FILE, WEIGHTS_FILE)
OPTIONAL_FILES = (PROVENANCE_FILE,)

#: Staging older than this belongs to a process that is gone: no copy of a few GB takes so long.
ABANDONED_SECONDS = 3600.0

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Artifact:
    digest: str  # sha256:<64 hex>
    path: Path
    size_bytes: int


class Staged:
    """A private copy of an adapter's files: look at it, then `publish` it; else it goes away."""

    def __init__(self, store: ArtifactStore, path: Path) -> None:
        self._store = store
        self.path = path

    @functools.cached_property
    def digest(self) -> str:
        """Reads all of the copy, once: ask for it before a transaction that others wait for."""
        return digest_of(self.path)

    def publish(self) -> Artifact:
        """Renames the copy to its digest. Another copy that was there first stays, and is the result."""
        return self._store._publish(self.path, self.digest)


class ArtifactStore:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging = root / ".staging"
        self._staging.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextmanager
    def stage(self, source: Path) -> Iterator[Staged]:
        """A durable copy of the files that an adapter may have; whatever else `source` holds is left behind.

        Raises PreflightError for a missing file, a link, or anything else that is no plain file.
        """
        path = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            for name in (*REQUIRED_FILES, *OPTIONAL_FILES):
                _copy(source / name, path / name, required=name in REQUIRED_FILES)
            _sync_directory(path)
            yield Staged(self, path)
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def put_directory(self, source: Path) -> Artifact:
        """Stages and publishes in one step, without a look at the contents."""
        with self.stage(source) as staged:
            return staged.publish()

    def path(self, digest: str) -> Path:
        """Where that artifact is or would be. Raises ValueError for what is no digest."""
        if DIGEST.fullmatch(digest) is None:
            raise ValueError(f"not a digest: {digest!r}")
        return self.root / digest.replace(":", "-")

    def exists(self, digest: str) -> bool:
        return self.path(digest).is_dir()

    def get(self, digest: str) -> Artifact:
        """Raises NotFound(code="artifact_not_found")."""
        path = self.path(digest)
        if not path.is_dir():
            raise NotFound(f"the artifact store has no {digest}", code="artifact_not_found")
        return Artifact(digest, path, _size(path))

    def digests(self) -> frozenset[str]:
        """All artifacts that are there."""
        names = (entry.name.replace("-", ":", 1) for entry in self.root.iterdir())
        return frozenset(name for name in names if DIGEST.fullmatch(name))

    def verify(self, digest: str) -> bool:
        """Whether the artifact is there and its bytes are still those of its name. Reads all of it."""
        path = self.path(digest)
        return path.is_dir() and digest_of(path) == digest

    def delete(self, digest: str) -> None:
        """Takes an artifact away, at once for every reader; one that is not there is no error."""
        doomed = Path(tempfile.mkdtemp(dir=self._staging)) / "deleted"
        try:
            self.path(digest).rename(doomed)
            _sync_directory(self.root)
        except FileNotFoundError:
            pass
        finally:
            shutil.rmtree(doomed.parent, ignore_errors=True)

    def clean_staging(self, older_than_seconds: float = ABANDONED_SECONDS, now: float | None = None) -> int:
        """Deletes what crashed processes left behind; how many directories they were. For the start of a process."""
        limit = (time.time() if now is None else now) - older_than_seconds
        abandoned = [entry for entry in self._staging.iterdir() if entry.stat().st_mtime < limit]
        for entry in abandoned:
            shutil.rmtree(entry, ignore_errors=True)
        return len(abandoned)

    def delete_unused(self, used: Collection[str], older_than_seconds: float = ABANDONED_SECONDS) -> int:
        """Deletes artifacts that no version uses. The caller sees to it that no import runs meanwhile."""
        limit = time.time() - older_than_seconds
        unused = [d for d in self.digests() - frozenset(used) if self.path(d).stat().st_ctime < limit]
        for digest in unused:
            self.delete(digest)
        return len(unused)

    def _publish(self, staged: Path, digest: str) -> Artifact:
        size, final = _size(staged), self.path(digest)
        staged.chmod(0o755)  # engines may run as another user of this host
        try:
            staged.rename(final)  # atomic; fails when a directory with files is there already
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        _sync_directory(self.root)
        return Artifact(digest, final, size)


def digest_of(directory: Path) -> str:
    """sha256 over one line `name NUL size NUL sha256-hex LF` a file, sorted by name."""
    lines = sorted(_line(file) for file in directory.iterdir())
    return "sha256:" + hashlib.sha256(b"".join(lines)).hexdigest()


def _line(file: Path) -> bytes:
    with file.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{file.name}\0{file.stat().st_size}\0{content}\n".encode()


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


def _copy(source: Path, target: Path, required: bool) -> None:
    """Copies a plain file and waits until it is on disk. A link is refused by the system, at the moment of opening."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if required:
            raise PreflightError(
                f"{source.name}: there is no such file; is this a PEFT adapter's folder?"
            ) from None
        return
    except NotADirectoryError:
        raise PreflightError("the adapter's path is no directory") from None
    except OSError as error:
        problem = "is a link" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
        raise PreflightError(f"{source.name}: {problem}") from None
    with os.fdopen(descriptor, "rb") as reader, target.open("xb") as writer:
        if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
            raise PreflightError(f"{source.name}: is not a plain file")
        shutil.copyfileobj(reader, writer, CHUNK_BYTES)
        writer.flush()
        os.fsync(writer.fileno())


def _sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
