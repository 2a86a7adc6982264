"""The dataset of a run: rows drawn, filtered, split, mixed with earlier ones, capped, and kept.

Owns the order of these steps, the report that says what each did, and the snapshot in the run's folder. The same rows,
settings and seed give the same digest. Each step's rules are its own module's: `draw`, `filters`, `methods`, `split`.

    RUN/dataset/train.jsonl, held_out.jsonl   the rows, in the kinds they were drawn in
    RUN/dataset/dropped.jsonl                 examples of what was filtered out
    RUN/dataset/report.json                   counts
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.engine import Connection

from adapters.database import Database
from adapters.datasets import completions_still_there, put_dataset
from adapters.draw import draw_feedback, draw_file
from adapters.errors import InvalidRequest, NotFound
from adapters.files import Files
from adapters.jobs import Job, Jobs
from adapters.records import existing_version
from adapters.routes import find_route
from adapters.rows import Row, RowKind, Split
from adapters.settings import Settings, Training
from trainer import filters, methods, pii
from trainer.examples import lengths_of
from trainer.filters import Filtered
from trainer.methods import Choice, choose_method
from trainer.recipe import engine_of, max_length_of
from trainer.rendering import Rendering
from trainer.split import Cap, Parts, cap_voices, has_accepted_answer, keyed_hash, split, split_by_file

__all__ = ["Built", "build", "choose_method", "draw_feedback", "draw_file", "read", "snapshot", "write"]

REPLAY_LEAST = 64
"""So many earlier rows may always be mixed in; beyond that no more than there are new ones."""


@dataclass(frozen=True, slots=True)
class Built:
    """`method` is never "auto". The rows are in the kinds they were drawn in (`methods.convert` makes examples)."""

    train: tuple[Row, ...]
    held_out: tuple[Row, ...]
    method: str
    digest: str
    report: dict[str, Any] = field(hash=False)

    @property
    def rows(self) -> list[tuple[Row, Split]]:
        return [
            *((row, Split.TRAIN) for row in self.train),
            *((row, Split.HELD_OUT) for row in self.held_out),
        ]


def snapshot(
    db: Database,
    settings: Settings,
    job: Job,
    rendering: Rendering,
    folder: Path,
    apart: Callable[[Callable[[], Built]], Built] = lambda work: work(),
) -> Built:
    """The job's dataset: from its folder where an earlier attempt has left it, else drawn and kept there. `apart` does
    what takes long and writes nothing.

    On record when it returns, under the job's token. Raises InvalidRequest, RowError, NotFound, StaleWorker.
    """
    built = read(folder / "dataset")
    if built is not None:
        with db.begin() as connection:
            _put(connection, built, job)
        return built
    built = apart(lambda: _drawn(db, settings, job, rendering))
    # Both at once: whoever is forgotten meanwhile stops the job, and then no row of theirs may come to lie here.
    with _staged(built, folder) as staged, db.begin() as connection:
        _put(connection, built, job)
        _move(staged, folder / "dataset")
    return built


def _put(connection: Connection, built: Built, job: Job) -> None:
    put_dataset(
        connection, built.digest, job.id, job.route, _counts(built.report), built.rows, token=job.token
    )


def build(
    rows: Sequence[Row],
    rendering: Rendering,
    training: Training,
    seed: int,
    earlier: Sequence[Row] = (),
    *,
    gone: Collection[str] = (),
    max_length: int,
    asked: str = "auto",
    validation: Sequence[Row] | None = None,
    key: str = "",
    left_out: Counter[str] | None = None,
) -> Built:
    """`earlier`: what the version that the run starts with has learned from; of these a share is learned again, but
    for the completions that are `gone`, and none of their units is held out. `key`: who is held out, the same for all
    runs of an adapter.

    Raises InvalidRequest(code="nothing_to_learn").
    """
    fitting = functools.partial(_fit, rendering=rendering, training=training, max_length=max_length)
    fit = fitting(rows)
    if not fit.rows:
        raise _nothing_fit(rows, fit)
    choice = choose_method(fit.rows, asked)
    usable, unused = methods.usable(fit.rows, choice)
    checked = None if validation is None else fitting(validation)
    parts = (
        split_by_file(usable, checked.rows, earlier)
        if checked is not None
        else split(
            usable,
            share=training.held_out_share,
            least_rows=training.min_held_out_rows,
            least_units=training.min_held_out_units,
            key=key,
            trained=earlier,
        )
    )
    fresh = _fresh(parts, earlier)
    there = [row for row in earlier if row.completion_id not in gone]
    replayed = fitting(_replay(fresh, there, choice, training.replay_share, seed)).rows
    capped, caps = cap_voices(
        [*fresh, *replayed],
        per_key=training.max_share_per_key,
        per_user=training.max_share_per_user,
        seed=seed,
    )
    if not methods.kinds_of(capped).accepted:
        raise _nothing("every accepted answer shares its user or its prompt with what is held out")
    train = _shuffled(capped, seed)
    held_out = _shuffled(parts.held_out, seed)
    report = {
        "drawn": len(rows),
        "left_out": dict(left_out or {}),
        "filters": [{**asdict(each), "examples": list(each.examples)} for each in fit.dropped],
        "method": asdict(choice),
        "unused": unused,
        "validation": None if checked is None else _validation_report(validation or (), checked),
        "split": _split_report(parts, training, validation is not None),
        "replay": {
            "earlier": len(earlier),
            "taken": len(replayed),
            "new": len(fresh),
            "known": len(parts.train) - len(fresh),
        },
        "caps": [_cap_report(cap) for cap in caps],
        "train": _side(train),
        "held_out": _side(held_out),
        "max_length": max_length,
        "seed": seed,
    }
    digest = _digest(train, held_out)
    return Built(train, held_out, choice.method, digest, {**report, "digest": digest})


# -- where the rows come from ----------------------------------------------------------------------
def _drawn(db: Database, settings: Settings, job: Job, rendering: Rendering) -> Built:
    payload, left_out = job.payload, Counter[str]()
    earlier, gone = earlier_rows(db, settings, payload.get("start_from"))
    source = payload["source"]
    validation = None
    if source["kind"] == "file":
        files = Files(db, settings.file_root)
        rows = draw_file(files.path(source["training_file"]))
        if source.get("validation_file"):
            validation = draw_file(files.path(source["validation_file"]))
    else:
        with db.read() as connection:
            route = find_route(connection, source["route"])
            policy = None if route is None else route.policy
            since = source.get("since")
            rows = draw_feedback(connection, source["route"], policy, since=since, left_out=left_out)
    return build(
        rows,
        rendering,
        settings.training,
        payload["seed"],
        earlier,
        gone=gone,
        max_length=max_length_of(payload, engine_of(settings, payload["base_model"])),
        asked=payload["method"],
        validation=validation,
        key=payload["adapter"],
        left_out=left_out,
    )


def earlier_rows(db: Database, settings: Settings, start_from: str | None) -> tuple[list[Row], set[str]]:
    """What a version has learned from, and the versions that it went on from, of the runs' folders that are there; and
    which of the completions behind it somebody has deleted."""
    rows: dict[tuple[str, str], Row] = {}
    ref, jobs = start_from, Jobs(db)
    while ref is not None:
        with db.read() as connection:
            origin = existing_version(connection, ref).origin
        try:
            ref = jobs.get(origin).payload.get("start_from")
        except NotFound:  # not made by a run
            break
        learned = _read_rows(settings.run_root / origin / "dataset" / "train.jsonl")
        rows |= {(row.id, row.unit): row for row in learned}
    ids = {row.completion_id for row in rows.values() if row.completion_id is not None}
    with db.read() as connection:
        return list(rows.values()), ids - completions_still_there(connection, ids)


def _fresh(parts: Parts, earlier: Sequence[Row]) -> list[Row]:
    """The rows that were not learned from yet; where there are none, all of them are learned from again."""
    known = {row.id for row in earlier}
    return [row for row in parts.train if row.id not in known] or list(parts.train)


def _replay(
    fresh: Sequence[Row], earlier: Sequence[Row], choice: Choice, share: float, seed: int
) -> list[Row]:
    """A share of the earlier rows, against forgetting; not where something new was said of the same answer."""
    taken = {row.id for row in fresh}
    judged = {row.completion_id for row in fresh} - {None}
    pool = [
        row
        for row in methods.usable(earlier, choice)[0]
        if row.id not in taken and row.completion_id not in judged
    ]
    count = min(round(share * len(pool)), max(len(fresh), REPLAY_LEAST))
    return list(_shuffled(pool, seed)[:count])


def _fit(rows: Sequence[Row], rendering: Rendering, training: Training, max_length: int) -> Filtered:
    """By the filters, whatever the order of the rows."""
    detect = pii.detector(training.pii)
    in_order = sorted(rows, key=lambda row: (row.created, row.id, _lines([row])))
    return filters.run(
        in_order, lengths=lambda row: lengths_of(row, rendering), max_length=max_length, detect=detect
    )


def _shuffled(rows: Iterable[Row], seed: int) -> tuple[Row, ...]:
    """In an order that only the rows and the seed decide."""
    return tuple(sorted(rows, key=lambda row: keyed_hash(str(seed), row.id)))


def _nothing_fit(rows: Sequence[Row], fit: Filtered) -> InvalidRequest:
    counts = ", ".join(f"{each.name} {each.count}" for each in fit.dropped if each.count)
    return _nothing(
        f"of {len(rows)} rows drawn the filters left none ({counts})"
        if rows
        else "no usable feedback or rows"
    )


def _nothing(why: str) -> InvalidRequest:
    return InvalidRequest(f"There is nothing to learn from: {why}.", code="nothing_to_learn")


# -- the report ------------------------------------------------------------------------------------
def _split_report(parts: Parts, training: Training, by_file: bool) -> dict[str, Any]:
    judged = [row.unit for row in parts.held_out if has_accepted_answer(row)]
    enough = len(judged) >= training.min_held_out_rows and len(set(judged)) >= training.min_held_out_units
    return {
        "by": "validation file" if by_file else "unit",
        "share": None if by_file else training.held_out_share,
        "held_out": len(parts.held_out),
        "with_accepted_answer": len(judged),
        "enough": enough,
        "left_out": parts.left_out,
    }


def _validation_report(rows: Sequence[Row], fit: Filtered) -> dict[str, Any]:
    return {"drawn": len(rows), "filters": {each.name: each.count for each in fit.dropped}}


def _cap_report(cap: Cap) -> dict[str, Any]:
    said = asdict(cap)
    if not cap.applied and cap.share < 1:
        said["note"] = f"{cap.voices} voices: no choice of rows gives each at most {cap.share:.0%}"
    return said


def _side(rows: Sequence[Row]) -> dict[str, Any]:
    kinds = Counter(
        f"{row.kind} {'liked' if row.liked else 'disliked'}" if row.kind is RowKind.LABEL else row.kind.value
        for row in rows
    )
    return {"rows": len(rows), "units": len({row.unit for row in rows}), "kinds": dict(sorted(kinds.items()))}


# -- the snapshot ----------------------------------------------------------------------------------
def write(built: Built, folder: Path) -> None:
    """Whole or not at all."""
    with _staged(built, folder.parent) as staged:
        _move(staged, folder)


@contextmanager
def _staged(built: Built, folder: Path) -> Iterator[Path]:
    """The dataset in a folder within this one, under a name of no meaning; what is not moved away is gone again."""
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob(".dataset-*"):  # by an attempt that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=".dataset-", dir=folder))
    dropped = [
        {"filter": each["name"], **example}
        for each in built.report["filters"]
        for example in each["examples"]
    ]
    files = {
        "train.jsonl": _lines(built.train),
        "held_out.jsonl": _lines(built.held_out),
        "dropped.jsonl": b"".join(orjson.dumps(example) + b"\n" for example in dropped),
        "report.json": orjson.dumps(_counts(built.report), option=orjson.OPT_INDENT_2),
    }
    try:
        for name, content in files.items():
            with (staging / name).open("wb") as stream:
                stream.write(content)
                os.fsync(stream.fileno())
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move(staged: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # one that cannot be read any more
    staged.rename(folder)


def read(folder: Path) -> Built | None:
    """None where there is none, or not all of it as it was written."""
    try:
        report = orjson.loads((folder / "report.json").read_bytes())
        train, held_out = _read_rows(folder / "train.jsonl"), _read_rows(folder / "held_out.jsonl")
        examples = _json_lines(folder / "dropped.jsonl")
    except (OSError, ValueError):
        return None
    if _digest(train, held_out) != report["digest"]:
        return None
    for each in report["filters"]:
        each["examples"] = [
            {name: value for name, value in example.items() if name != "filter"}
            for example in examples
            if example["filter"] == each["name"]
        ]
    return Built(tuple(train), tuple(held_out), report["method"]["method"], report["digest"], report)


def _counts(report: dict[str, Any]) -> dict[str, Any]:
    """A report without its examples."""
    return {**report, "filters": [{**each, "examples": []} for each in report["filters"]]}


def _digest(train: Sequence[Row], held_out: Sequence[Row]) -> str:
    return f"sha256:{hashlib.sha256(_lines(train) + b'held out' + _lines(held_out)).hexdigest()}"


def _lines(rows: Iterable[Row]) -> bytes:
    return b"".join(orjson.dumps(asdict(row), option=orjson.OPT_SORT_KEYS) + b"\n" for row in rows)


def _read_rows(file: Path) -> list[Row]:
    return [Row(**{**value, "kind": RowKind(value["kind"])}) for value in _json_lines(file)]


def _json_lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    return [orjson.loads(line) for line in file.read_bytes().splitlines() if line.strip()]
