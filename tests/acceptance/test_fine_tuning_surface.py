"""Files, uploads and fine-tuning jobs as the official SDK sees them. Nothing is trained: the test is the worker."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import pytest
from openai.types import FileDeleted, FileObject, Upload
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from openai.types.uploads import UploadPart
from pydantic import BaseModel

from adapters import jobs as queue
from adapters.batches import Batches
from adapters.database import Database
from adapters.jobs import EventDraft, Jobs, JobState
from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, running, start_server, wait_for
from tests.lora import TINY_CONFIG, write_lora

NO_WORKER = "[training]\nworker = false\n"

M = TypeVar("M", bound=BaseModel)


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as fake:
        yield fake


@pytest.fixture(scope="module")
def server(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("tuning") / "home"
    with running(home, engines_config(engine, extra=NO_WORKER)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()


@pytest.fixture
def db(server: Server) -> Iterator[Database]:
    database = Database(f"sqlite:///{server.home / 'burnish.db'}")
    yield database
    database.close()


@pytest.fixture
def jobs(db: Database) -> Jobs:
    return Jobs(db)


def chat(n: int) -> bytes:
    row = {
        "messages": [
            {"role": "user", "content": f"What is {n} and {n}?"},
            {"role": "assistant", "content": str(2 * n)},
        ]
    }
    return json.dumps(row).encode() + b"\n"


def preference(n: int) -> bytes:
    row = {
        "input": {"messages": [{"role": "user", "content": f"What is {n} and {n}?"}]},
        "preferred_output": [{"role": "assistant", "content": str(2 * n)}],
        "non_preferred_output": [{"role": "assistant", "content": "a fish"}],
    }
    return json.dumps(row).encode() + b"\n"


TRAIN = b"".join(chat(n) for n in range(12))


def send(client: openai.OpenAI, data: bytes = TRAIN, name: str = "train.jsonl", **options: Any) -> FileObject:
    return client.files.create(**{"file": (name, data), "purpose": "fine-tune", **options})


def create(client: openai.OpenAI, file: FileObject | str, **options: Any) -> FineTuningJob:
    id = file if isinstance(file, str) else file.id
    return client.fine_tuning.jobs.create(**{"model": MODEL, "training_file": id, **options})


def settled(client: openai.OpenAI, job: FineTuningJob) -> FineTuningJob:
    """The job once its files were looked through."""

    def look() -> FineTuningJob | None:
        found = client.fine_tuning.jobs.retrieve(job.id)
        return None if found.status == "validating_files" else found

    found = wait_for(look, 30)
    assert isinstance(found, FineTuningJob)
    return found


def strictly(kind: type[M], value: Any) -> M:
    """The JSON of an answer as the SDK's own type, without a coercion."""
    return kind.model_validate(value, strict=True)


def get(server: Server, path: str) -> Any:
    with server.http() as web:
        answer = web.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(act: Callable[[], Any], kind: type[openai.APIStatusError]) -> openai.APIStatusError:
    with pytest.raises(kind) as caught:
        act()
    body = caught.value.body
    assert isinstance(body, dict)
    assert set(body) == {"message", "type", "param", "code"}
    return caught.value


def announced(server: Server, path: str, size: int) -> tuple[int, str]:
    """The answer to a form of `size` bytes of which none has come: the status, and the error's code."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", path)
    connection.putheader("content-type", "multipart/form-data; boundary=x")
    connection.putheader("content-length", str(size))
    connection.endheaders()
    answer = connection.getresponse()
    code = json.loads(answer.read())["error"]["code"]
    connection.close()
    return answer.status, code


# -- files -----------------------------------------------------------------------------------------
def test_a_file_is_sent_listed_read_and_deleted(client: openai.OpenAI, server: Server) -> None:
    made = send(client, expires_after={"anchor": "created_at", "seconds": 7200})
    found = strictly(FileObject, get(server, f"/v1/files/{made.id}"))
    assert found == made
    assert (made.bytes, made.filename, made.purpose, made.status) == (
        len(TRAIN),
        "train.jsonl",
        "fine-tune",
        "processed",
    )
    assert made.expires_at == made.created_at + 7200
    assert client.files.content(made.id).read() == TRAIN
    assert client.files.retrieve(made.id).id == made.id
    deleted = client.files.delete(made.id)
    assert strictly(FileDeleted, deleted.model_dump()).deleted
    error = refused(lambda: client.files.retrieve(made.id), openai.NotFoundError)
    assert error.code == "file_not_found"


def test_files_are_paged_newest_first_by_purpose(client: openai.OpenAI) -> None:
    made = [send(client, b"x", f"{n}.txt", purpose="user_data").id for n in range(5)]
    assert [file.id for file in client.files.list(purpose="user_data", limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(purpose="user_data", order="asc")] == made
    assert refused(lambda: client.files.list(after="file-none"), openai.BadRequestError).param == "after"
    assert refused(lambda: client.files.list(limit=10_001), openai.BadRequestError).param == "limit"


def test_a_big_file_goes_to_disk_and_back(client: openai.OpenAI) -> None:
    data = hashlib.sha256(b"seed").digest() * (40 * 1024 * 1024 // 32)
    made = send(client, data, "big.bin", purpose="user_data")
    assert made.bytes == len(data)
    with client.files.with_streaming_response.content(made.id) as answer:
        digest = hashlib.sha256()
        for piece in answer.iter_bytes():
            digest.update(piece)
    assert digest.hexdigest() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "name",
    ["../../burnish.db", "..\\..\\burnish.db", "/etc/passwd", 'a"; filename="b', "日本語.jsonl", "." * 300],
)
def test_hostile_names_stay_labels(client: openai.OpenAI, server: Server, name: str) -> None:
    made = send(client, b"x", name, purpose="user_data")
    assert "/" not in made.filename
    assert (server.home / "files" / made.id).read_bytes() == b"x"
    answer = client.files.with_raw_response.content(made.id)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert (server.home / "burnish.db").stat().st_size > 1000


def test_what_is_no_file_is_refused_as_openai_would(client: openai.OpenAI, server: Server) -> None:
    assert refused(lambda: send(client, b""), openai.BadRequestError).code == "empty_file"
    for purpose in ("nonsense", "batch_output", "fine-tune-results"):
        wrong = refused(lambda p=purpose: send(client, b"x", purpose=p), openai.BadRequestError)  # type: ignore[misc]
        assert wrong.param == "purpose"
    for after in ({"anchor": "created_at", "seconds": 5}, {"anchor": "sunrise", "seconds": 7200}):
        wrong = refused(lambda a=after: send(client, b"x", expires_after=a), openai.BadRequestError)  # type: ignore[misc]
        assert (wrong.param or "").startswith("expires_after")
    with server.http() as web:
        bodies: list[dict[str, Any]] = [
            {"data": {"purpose": "fine-tune"}},
            {"files": {"purpose": (None, "fine-tune")}},
            {"files": {"file": ("a", b"x"), "other": ("b", b"y")}, "data": {"purpose": "fine-tune"}},
            {"files": {"file": ("a", b"x")}, "data": {"purpose": "fine-tune", "path": "/etc"}},
            {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            {"content": b"{}", "headers": {"content-type": "application/json"}},
        ]
        for body in bodies:
            answer = web.post("/v1/files", **body)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["type"] == "invalid_request_error"
    assert not list((server.home / "files" / ".staging").iterdir())


def test_a_file_beyond_the_limit_is_refused_before_it_is_sent(server: Server) -> None:
    assert announced(server, "/v1/files", 600 * 1024**2) == (413, "request_too_large")


def test_a_file_cut_off_half_way_leaves_nothing(server: Server) -> None:
    before = set((server.home / "files").iterdir())

    def half() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nabc'
        raise RuntimeError("the client dies")

    with server.http() as web, pytest.raises(RuntimeError):
        web.post("/v1/files", content=half(), headers={"content-type": "multipart/form-data; boundary=x"})
    wait_for(lambda: not list((server.home / "files" / ".staging").iterdir()))
    assert set((server.home / "files").iterdir()) == before


# -- uploads ---------------------------------------------------------------------------------------
def test_the_sdk_uploads_a_file_in_parts(client: openai.OpenAI, tmp_path: Path) -> None:
    data = b"".join(chat(n) for n in range(3000))
    file = tmp_path / "many.jsonl"
    file.write_bytes(data)
    upload = client.uploads.upload_file_chunked(
        file=file,
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=64 * 1024,
        md5=hashlib.md5(data).hexdigest(),
    )
    assert upload.status == "completed"
    assert upload.file is not None
    assert client.files.content(upload.file.id).read() == data


def test_uploads_say_what_is_wrong(client: openai.OpenAI, server: Server) -> None:
    new = {"filename": "x", "mime_type": "text/plain", "purpose": "fine-tune"}
    for size in (0, 9 * 1024**3):
        wrong = refused(lambda s=size: client.uploads.create(bytes=s, **new), openai.BadRequestError)  # type: ignore[arg-type, misc]
        assert wrong.param == "bytes"
    upload = client.uploads.create(bytes=4, **new)  # type: ignore[arg-type]
    assert strictly(Upload, upload.model_dump()).expires_at == upload.created_at + 3600
    one, two = (client.uploads.parts.create(upload.id, data=data) for data in (b"12", b"34"))
    assert strictly(UploadPart, one.model_dump()).upload_id == upload.id
    short = refused(lambda: client.uploads.complete(upload.id, part_ids=[one.id]), openai.BadRequestError)
    assert short.code == "upload_size_mismatch"
    order = refused(
        lambda: client.uploads.complete(
            upload.id, part_ids=[two.id, one.id], md5=hashlib.md5(b"1234").hexdigest()
        ),
        openai.BadRequestError,
    )
    assert order.code == "upload_checksum_mismatch"
    assert client.uploads.cancel(upload.id).status == "cancelled"
    late = refused(lambda: client.uploads.parts.create(upload.id, data=b"56"), openai.ConflictError)
    assert late.code == "upload_state_conflict"
    nowhere = refused(lambda: client.uploads.cancel("upload_none"), openai.NotFoundError)
    assert nowhere.code == "upload_not_found"
    assert announced(server, f"/v1/uploads/{upload.id}/parts", 65 * 1024**2) == (413, "request_too_large")


# -- jobs ------------------------------------------------------------------------------------------
def test_a_job_is_created_validated_and_waits(client: openai.OpenAI, server: Server) -> None:
    file, held = send(client), send(client, b"".join(chat(n) for n in range(100, 104)))
    job = create(
        client,
        file,
        validation_file=held.id,
        suffix="Sums & More!",
        seed=7,
        metadata={"team": "a"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}},
        },
    )
    assert job.status in ("validating_files", "queued")
    queued = settled(client, job)
    shown = strictly(FineTuningJob, get(server, f"/v1/fine_tuning/jobs/{job.id}"))
    assert (shown.status, shown.model, shown.seed, shown.metadata) == ("queued", MODEL, 7, {"team": "a"})
    assert (shown.training_file, shown.validation_file) == (file.id, held.id)
    assert (shown.hyperparameters.n_epochs, shown.hyperparameters.batch_size) == (2, "auto")
    assert shown.method is not None
    assert shown.method.type == "supervised"
    assert (shown.fine_tuned_model, shown.finished_at, shown.error, shown.result_files) == (
        None,
        None,
        None,
        [],
    )
    assert queued.model_extra is not None
    assert queued.model_extra["adapter"] == "sums-more"
    assert queued.model_extra["gate"] == {"mode": "require", "report": None}
    events = [
        strictly(FineTuningJobEvent, e) for e in get(server, f"/v1/fine_tuning/jobs/{job.id}/events")["data"]
    ]
    assert [event.message for event in reversed(events)] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {file.id}",
        "Files validated, moving job to queued state",
    ]


def test_defaults_are_made_and_the_method_is_told_from_the_rows(
    client: openai.OpenAI, server: Server
) -> None:
    data = b"".join(preference(n) for n in range(10))
    job = settled(client, create(client, send(client, data), hyperparameters={"n_epochs": 3}))
    shown = strictly(FineTuningJob, get(server, f"/v1/fine_tuning/jobs/{job.id}"))
    assert shown.method is not None
    assert shown.method.type == "dpo"
    assert shown.method.dpo is not None
    assert shown.method.dpo.hyperparameters is not None
    assert shown.method.dpo.hyperparameters.n_epochs == 3
    assert shown.seed >= 0
    assert (job.model_extra or {})["adapter"].startswith("ft-")


@pytest.mark.parametrize(
    ("data", "method", "code", "words"),
    [
        (
            TRAIN + b'{"messages": []}\n' + TRAIN + b"{nope\n",
            "auto",
            "invalid_training_file",
            "line 13: `messages` is",
        ),
        (
            b"".join(chat(n) for n in range(9)),
            "auto",
            "invalid_n_examples",
            "9 examples, but must have at least 10",
        ),
        (TRAIN, "dpo", "invalid_training_file", "line 1: the row is a demonstration"),
        (
            b"PK\x03\x04 not text at all \xff\xfe",
            "auto",
            "invalid_training_file",
            "line 1: the line is not UTF-8",
        ),
    ],
)
def test_a_bad_file_fails_its_job_and_names_the_line(
    client: openai.OpenAI, server: Server, data: bytes, method: str, code: str, words: str
) -> None:
    job = create(client, send(client, data), extra_body={"method": {"type": method}})
    failed = settled(client, job)
    assert failed.status == "failed"
    strictly(FineTuningJob, get(server, f"/v1/fine_tuning/jobs/{job.id}"))
    assert failed.error is not None
    assert (failed.error.code, failed.error.param) == (code, "training_file")
    assert words in failed.error.message
    assert failed.finished_at is not None
    last = client.fine_tuning.jobs.list_events(job.id).data[0]
    assert (last.level, words in last.message) == ("error", True)


def test_the_validation_file_is_looked_through_too(client: openai.OpenAI) -> None:
    held = send(client, b'{"prompt": "a"}\n')
    failed = settled(client, create(client, send(client), validation_file=held.id))
    assert failed.error is not None
    assert (failed.error.code, failed.error.param) == ("invalid_validation_file", "validation_file")
    assert "line 1: `completion` must be a string" in failed.error.message


def test_a_batch_is_no_fine_tuning_job(client: openai.OpenAI, db: Database) -> None:
    batch = Batches(db).create(
        input_file="file-gone",
        endpoint="/v1/chat/completions",
        window="24h",
        window_seconds=86400.0,
        metadata=None,
        key_id=None,
    )
    jobs = client.fine_tuning.jobs
    acts: list[Callable[[str], object]] = [
        jobs.retrieve,
        jobs.cancel,
        jobs.pause,
        jobs.resume,
        jobs.list_events,
        jobs.checkpoints.list,
    ]
    for act in acts:
        error = refused(lambda act=act: act(batch.id), openai.NotFoundError)  # type: ignore[misc]
        assert (error.param, error.code) == ("fine_tuning_job_id", "job_not_found")
    assert batch.id not in [job.id for job in jobs.list()]
    assert refused(lambda: list(jobs.list(after=batch.id)), openai.BadRequestError).param == "after"


def test_a_file_deleted_before_it_was_read_fails_the_job(client: openai.OpenAI, db: Database) -> None:
    with db.begin() as connection:  # as a gateway leaves it that dies at once
        job = queue.enqueue(
            connection,
            kind="training",
            route=None,
            payload={
                "source": {"kind": "file", "training_file": "file-gone", "validation_file": None},
                "method": "auto",
            },
            state=JobState.VALIDATING,
        )
    found = wait_for(lambda: (f := client.fine_tuning.jobs.retrieve(job.id)).error and f, 20)
    assert found.error.message == "The file is not there any more."


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"model": "no-such-model"}, "model", "model_not_found"),
        ({"training_file": "file-none"}, "training_file", "invalid_training_file"),
        ({"validation_file": "file-none"}, "validation_file", "invalid_training_file"),
        ({"suffix": "x" * 65}, "suffix", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"epochs": 3}}, "hyperparameters.epochs", "unknown_field"),
        ({"metadata": {"k" * 65: "v"}}, "metadata", "invalid_value"),
        ({"extra_body": {"nonsense": 1}}, "nonsense", "invalid_value"),
        ({"extra_body": {"method": {"type": "reinforcement"}}}, "method.type", "invalid_value"),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 5}}}},
            "method.dpo.hyperparameters.beta",
            "invalid_value",
        ),
        ({"extra_body": {"gate": "off"}}, "gate", "invalid_value"),
        ({"extra_body": {"training_file": None}}, "training_file", "invalid_value"),
    ],
)
def test_orders_that_make_no_sense_are_refused(
    client: openai.OpenAI, options: dict[str, Any], param: str, code: str
) -> None:
    file = send(client).id
    error = refused(lambda: create(client, **{"file": file, **options}), openai.BadRequestError)
    assert (error.param, error.code) == (param, code)


def test_a_file_for_something_else_is_no_training_file(client: openai.OpenAI) -> None:
    file = send(client, TRAIN, purpose="user_data")
    error = refused(lambda: create(client, file), openai.BadRequestError)
    assert (error.param, error.code) == ("training_file", "invalid_training_file")


def test_a_waiting_job_is_paused_resumed_and_cancelled(client: openai.OpenAI, server: Server) -> None:
    job = settled(client, create(client, send(client)))
    tuning = client.fine_tuning.jobs
    assert tuning.pause(job.id).status == "paused"  # type: ignore[comparison-overlap]  # OpenAI's API says so too
    assert tuning.resume(job.id).status == "queued"
    assert tuning.cancel(job.id).status == "cancelled"
    strictly(FineTuningJob, get(server, f"/v1/fine_tuning/jobs/{job.id}"))
    error = refused(lambda: tuning.resume(job.id), openai.ConflictError)
    assert error.code == "job_state_conflict"
    unknown = refused(lambda: tuning.cancel("ftjob-none"), openai.NotFoundError)
    assert unknown.code == "job_not_found"


def claim(client: openai.OpenAI, jobs: Jobs, job: FineTuningJob) -> queue.Job:
    """The job as a worker holds it; whatever else waits is cancelled."""
    for other in client.fine_tuning.jobs.list():
        if other.id != job.id and other.status in ("queued", "running", "paused"):
            client.fine_tuning.jobs.cancel(other.id)
    held = jobs.claim("test", ["training"], 60.0)
    assert held is not None
    assert held.id == job.id
    return held


def test_a_run_is_seen_from_its_first_step_to_its_model(
    client: openai.OpenAI, server: Server, jobs: Jobs, db: Database
) -> None:
    job = settled(client, create(client, send(client), suffix="watched"))
    held = claim(client, jobs, job)
    at = time.time()
    jobs.report(
        held.id,
        held.token,
        {
            "stage": "train",
            "step": 4,
            "eta_seconds": 60.0,
            "method": "supervised",
            "hyperparameters": {"n_epochs": 3},
        },
        [
            EventDraft("Step 4/8: training loss=1.20", kind="metrics", data={"step": 4, "train_loss": 1.2}),
            EventDraft(
                "Checkpoint at step 4", kind="checkpoint", data={"step": 4, "loss": 1.2, "valid_loss": 1.5}
            ),
        ],
        at,
    )
    path = f"/v1/fine_tuning/jobs/{job.id}"
    running_job = strictly(FineTuningJob, get(server, path))
    assert (running_job.status, running_job.estimated_finish) == ("running", int(at + 60))
    assert running_job.hyperparameters.n_epochs == 3
    assert (running_job.model_extra or {})["progress"]["step"] == 4
    events = [strictly(FineTuningJobEvent, event) for event in get(server, f"{path}/events")["data"]]
    assert [event.type for event in events[:2]] == ["message", "metrics"]
    assert events[1].data == {"step": 4, "train_loss": 1.2}
    first = client.fine_tuning.jobs.list_events(job.id, limit=1)
    assert len([*first]) == len(events), "the SDK's paging comes to an end"
    (point,) = [strictly(FineTuningJobCheckpoint, p) for p in get(server, f"{path}/checkpoints")["data"]]
    assert (point.step_number, point.metrics.train_loss, point.metrics.valid_loss) == (4, 1.2, 1.5)
    assert point.fine_tuned_model_checkpoint == "watched:ckpt-step-4"
    assert point.id.startswith("ftckpt_")
    assert [p.id for p in client.fine_tuning.jobs.checkpoints.list(job.id, limit=1)] == [point.id]
    with db.begin() as connection:
        result = {"fine_tuned_model": "watched@1", "trained_tokens": 640, "gate": {"outcome": "pass"}}
        queue.finish(connection, held.id, held.token, state=JobState.SUCCEEDED, result=result)
    done = strictly(FineTuningJob, get(server, path))
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "watched@1", 640)
    assert (done.estimated_finish, done.finished_at is not None) == (None, True)
    assert (done.model_extra or {})["gate"]["report"] == {"outcome": "pass"}
    assert client.fine_tuning.jobs.list_events(job.id).data[0].message == "The job has successfully completed"


def test_a_running_job_is_asked_and_a_cancelled_one_is_cancelled_at_once_for_its_client(
    client: openai.OpenAI, jobs: Jobs
) -> None:
    job = settled(client, create(client, send(client)))
    held = claim(client, jobs, job)
    assert client.fine_tuning.jobs.pause(job.id).status == "running"
    assert jobs.heartbeat(held.id, held.token, 60.0) is queue.Wish.PAUSE
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert jobs.heartbeat(held.id, held.token, 60.0) is queue.Wish.CANCEL
    jobs.release(held.id, held.token)
    assert jobs.get(job.id).state is JobState.CANCELLED


def test_jobs_are_paged_and_found_by_metadata(client: openai.OpenAI) -> None:
    file = send(client)
    made = [create(client, file, metadata={"batch": "x", "n": str(n)}).id for n in range(3)]
    with httpx.Client(base_url=str(client.base_url), trust_env=False) as web:
        found = web.get("fine_tuning/jobs", params={"metadata[batch]": "x", "limit": 2}).json()
        assert [job["id"] for job in found["data"]] == made[:0:-1]
        assert found["has_more"] is True
        bad = web.get("fine_tuning/jobs", params={'metadata["]': "x"})
        assert bad.status_code == 400
    listed = [job.id for job in client.fine_tuning.jobs.list(limit=1)]
    assert listed[:3] == made[::-1]
    assert len(listed) == len(set(listed))


# -- routes, keys, crashes -------------------------------------------------------------------------
def test_a_job_goes_on_from_a_version_and_trains_a_route(server: Server, client: openai.OpenAI) -> None:
    server.add_adapter("support", seed=1)
    warm = create(client, send(client), model="support@1", suffix="colder")
    assert (warm.model, (warm.model_extra or {})["adapter"]) == (MODEL, "colder")
    by_route = create(client, send(client), model="support", extra_body={"route": "support"})
    assert ((by_route.model_extra or {})["adapter"], (by_route.model_extra or {})["route"]) == (
        "support",
        "support",
    )
    settled(client, by_route)
    client.fine_tuning.jobs.cancel(by_route.id)
    fed = create(
        client,
        "",
        model="support",
        extra_body={"route": "support", "method": {"type": "kto", "kto": {"hyperparameters": {"rank": 8}}}},
    )
    shown = fed.model_extra or {}
    assert (fed.status, fed.training_file, shown["route"], shown["adapter"]) == (
        "queued",
        "",
        "support",
        "support",
    )
    busy = refused(
        lambda: create(client, "", model="support", extra_body={"route": "support"}), openai.ConflictError
    )
    assert busy.code == "training_active"
    client.fine_tuning.jobs.cancel(fed.id)


def test_keys_have_their_own_files_and_jobs(engine: FakeEngine, tmp_path: Path) -> None:
    with running(tmp_path / "home", engines_config(engine, extra=NO_WORKER)) as server:
        keys = {
            name: server.burnish("keys", "create", "--name", name, "--scope", scope).stdout.strip()
            for name, scope in (("ann", "inference"), ("bob", "inference"), ("root", "admin"))
        }
        wait_for(lambda: _is_refused(server))
        ann, bob, root = (server.client(api_key=keys[name]) for name in ("ann", "bob", "root"))
        file = send(ann)
        job = create(ann, file, suffix="mine")
        for act in (
            lambda: bob.files.retrieve(file.id),
            lambda: bob.files.content(file.id),
            lambda: bob.files.delete(file.id),
            lambda: bob.fine_tuning.jobs.retrieve(job.id),
            lambda: bob.fine_tuning.jobs.cancel(job.id),
            lambda: bob.fine_tuning.jobs.list_events(job.id),
            lambda: bob.fine_tuning.jobs.checkpoints.list(job.id),
        ):
            refused(act, openai.NotFoundError)
        assert list(bob.files.list()) == []
        assert list(bob.fine_tuning.jobs.list()) == []
        assert refused(lambda: create(bob, file), openai.BadRequestError).code == "invalid_training_file"
        assert [f.id for f in root.files.list()] == [file.id]
        assert root.fine_tuning.jobs.retrieve(job.id).id == job.id
        for extra in ({"route": "mine"}, {"gate": "report"}):
            error = refused(lambda e=extra: create(ann, file, extra_body=e), openai.PermissionDeniedError)  # type: ignore[misc]
            assert error.code == "insufficient_scope"
        lora = write_lora(tmp_path / "taken", TINY_CONFIG)
        server.burnish("adapters", "add", "taken", str(lora), "--no-wait")
        own = create(ann, file, suffix="taken").model_extra or {}
        assert own["adapter"].startswith("taken-"), "a key that is no admin's changes no adapter of others"
        theirs = create(root, file, suffix="taken").model_extra or {}
        assert theirs["adapter"] == "taken"
        upload = ann.uploads.create(bytes=1, filename="x", mime_type="text/plain", purpose="fine-tune")
        refused(lambda: bob.uploads.parts.create(upload.id, data=b"1"), openai.NotFoundError)
        refused(lambda: bob.uploads.complete(upload.id, part_ids=["part_x"]), openai.NotFoundError)
        refused(lambda: server.client(api_key="none").files.list(), openai.AuthenticationError)


def _is_refused(server: Server) -> bool:
    with server.http() as web:
        return web.get("/v1/files").status_code == 401


def test_promise_08_validation_goes_on_after_the_gateway_was_killed(
    engine: FakeEngine, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    config = engines_config(engine, extra=NO_WORKER)
    data = b"".join(chat(n) for n in range(150_000)) + b"{nope\n"
    with running(home, config) as server:
        client = server.client()
        file = send(client, data)
        job = create(client, file)
        wait_for(lambda: _token(home, job.id) == 1)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(10)
    again = start_server(home, config)
    try:
        again.wait_up()
        client = again.client()
        assert client.fine_tuning.jobs.retrieve(job.id).status == "validating_files"
        failed = wait_for(
            lambda: (f := client.fine_tuning.jobs.retrieve(job.id)).status == "failed" and f, 60
        )
        assert "line 150001" in failed.error.message
        messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
        assert len([m for m in messages if m.startswith("The job failed")]) == 1
        assert _token(home, job.id) == 2
    finally:
        again.stop()


def _token(home: Path, id: str) -> int:
    database = Database(f"sqlite:///{home / 'burnish.db'}")
    try:
        return Jobs(database).get(id).token
    finally:
        database.close()
