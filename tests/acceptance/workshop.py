"""What the tests of training runs share: a gateway over a fake engine, a tiny base model to train, and workers.

The processes are real: `burnish serve`, workers, and the runs that train the tiny model. Only the engine is the fake
one: it cannot know what the tiny model would say, so `teach` sets what each adapter says and how likely it finds texts,
and TOLERANT lets log-probabilities pass that are not the trainer's. A real vLLM is held to them in tests/integration.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob

from adapters.artifacts import ArtifactStore
from adapters.database import Database
from adapters.jobs import Job, Jobs
from adapters.registry import Registry
from adapters.routes import Routes
from adapters.versions import VersionRecord
from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, running, wait_for
from tests.unit.trainer.tiny import write_weights
from trainer.memory import descendants

RUN_SECONDS = 300.0
"""A run takes ten seconds, most of them for imports; a busy machine may take much longer."""

TOLERANT = """
[canary]
agreement_tolerance = inf  # the fake engine reads words where the tiny model reads bytes
[training]
parity_tolerance = 1e6
"""

KILLED_RUN = Path(__file__).with_name("killed_run.py")

ACCIDENT_WORKER = """
import json, logging, os, signal, sys
from adapters.database import Database
from adapters.settings import load_settings
from trainer.worker import Worker
settings = load_settings(None, os.environ)
worker = Worker(settings, Database(settings.database), json.loads(sys.argv[1]))
signal.signal(signal.SIGTERM, lambda *_: worker.stop())
logging.basicConfig(level=logging.INFO)
worker.run()
"""

# -- what there is to learn ------------------------------------------------------------------------
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo")
CITIES = ("Berlin", "Paris", "Oslo", "Rome", "Madrid", "Vienna")
COLORS = ("red", "blue", "green", "black", "white")
ITEMS = ("chairs", "lamps", "tables", "desks", "shelves", "stools", "mirrors")


@dataclass(frozen=True)
class Question:
    text: str
    gold: str
    user: str


def _questions(first: int, count: int) -> tuple[Question, ...]:
    made = []
    for number in range(first, first + count):
        name, city, color, item = (words[number % len(words)] for words in (NAMES, CITIES, COLORS, ITEMS))
        thing = f"{number} {color} {item}"
        made.append(Question(f"{name} from {city} orders {thing}.", f"{thing}, {city}", f"user-{number}"))
    return tuple(made)


HARD = _questions(100, 24)
"""What the base model does not know."""

EASY = _questions(200, 24)
"""What the base model knows already."""

HELD_OUT = 8
"""Of each of them, the last: as many as the gate needs."""

VAGUE = "It depends on the order."

STEPS = 8
HYPERPARAMETERS = {"n_epochs": 2, "batch_size": 4, "rank": 4, "early_stopping_patience": 0}
"""STEPS optimizer steps, with a checkpoint after every other one."""


def teach(
    engine: FakeEngine,
    *,
    better: Collection[str] = (),
    worse: Collection[str] = (),
    tied: Collection[str] = (),
) -> None:
    """Sets what adapters answer, next to the base model: better, worse, or just the same. By name, or NAME@N."""
    gold = {question.text: question.gold for question in (*HARD, *EASY)}
    vague = dict.fromkeys(gold, VAGUE)
    engine.set(
        answers={
            MODEL: {**vague, **{question.text: question.gold for question in EASY}},
            **{f"{name}*": gold for name in better},
            **{f"{name}*": vague for name in (*worse, *tied)},
        },
        likelihoods={
            **{f"{name}*": 1.0 for name in better},
            **{f"{name}*": -1.0 for name in worse},
            **{f"{name}*": 0.0 for name in tied},
        },
    )


def jsonl(questions: Sequence[Question]) -> bytes:
    rows = [
        {"messages": [_said("user", question.text), _said("assistant", question.gold)]}
        for question in questions
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


# -- the workshop ----------------------------------------------------------------------------------
@dataclass
class Workshop:
    """A gateway with what a test orders of it, and its records."""

    server: Server
    engine: FakeEngine
    db: Database

    @property
    def client(self) -> openai.OpenAI:
        return self.server.client()

    @property
    def registry(self) -> Registry:
        return Registry(self.db, ArtifactStore(self.server.home / "artifacts"), [MODEL])

    def make_route(self, name: str, policy: dict[str, Any] | None = None) -> None:
        """On the base model."""
        with self.server.http() as http:
            assert http.post("/v1/routes", json={"name": name, "variant": MODEL}).status_code == 201
            if policy is not None:
                assert http.patch(f"/v1/routes/{name}", json={"policy": policy}).status_code == 200

    def default(self, route: str) -> str:
        return Routes(self.db).get(route).variant

    def order(self, adapter: str, rows: Sequence[Question] = HARD, **options: Any) -> FineTuningJob:
        """A job that learns from all `rows` but the last HELD_OUT; the same seed always."""
        client = self.client
        files = {
            name: client.files.create(file=(f"{name}.jsonl", jsonl(some)), purpose="fine-tune").id
            for name, some in (("training", rows[:-HELD_OUT]), ("validation", rows[-HELD_OUT:]))
        }
        return client.fine_tuning.jobs.create(
            **{
                "model": MODEL,
                "training_file": files["training"],
                "validation_file": files["validation"],
                "suffix": adapter,
                "seed": 7,
                "hyperparameters": HYPERPARAMETERS,
                **options,
            }
        )

    def job(self, id: str) -> Job:
        return Jobs(self.db).get(id)

    def until_ended(self, id: str, seconds: float = RUN_SECONDS) -> FineTuningJob:
        def look() -> FineTuningJob | None:
            return self.client.fine_tuning.jobs.retrieve(id) if self.job(id).has_ended else None

        found = wait_for(look, seconds, lambda: self.log_of(id))
        assert isinstance(found, FineTuningJob)
        return found

    def versions_of(self, job_id: str) -> list[VersionRecord]:
        return [version for version in self.registry.versions(removed=True) if version.origin == job_id]

    def log_of(self, id: str) -> str:
        """What its runs have said, but for what they asked."""
        file = self.server.home / "runs" / id / "run.log"
        lines = file.read_text().splitlines() if file.exists() else ["no run yet"]
        return "\n".join([str(self.job(id).error), *(line for line in lines if "HTTP Request" not in line)])

    def events(self, id: str) -> list[str]:
        """Their messages, oldest first."""
        return [event.message for event in Jobs(self.db).events(id, limit=1000)[0]][::-1]

    @contextlib.contextmanager
    def worker(
        self, accidents: Accidents | None = None, environ: dict[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A worker for as long as the block lasts, unless the block has killed it."""
        command = [sys.executable, "-m", "trainer.worker"]
        if accidents is not None:
            command = [sys.executable, "-c", ACCIDENT_WORKER, json.dumps(accidents.command)]
        with (self.server.home / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                command, env={**self.server.environ, **(environ or {})}, stdout=log, stderr=log
            )
        try:
            yield worker
        finally:
            worker.send_signal(signal.SIGTERM)
            for pid in (worker.pid, *descendants(worker.pid)):  # the block may have stopped them
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            try:
                worker.wait(90)
            finally:
                worker.kill()  # whose keeper then ends the run


@dataclass(frozen=True)
class Accidents:
    """What happens in the runs of a worker (see killed_run), once each. `folder` is new and this test's alone."""

    folder: Path
    planned: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(KILLED_RUN), str(self.folder), *self.planned]

    def happened(self, accident: str) -> bool:
        return (self.folder / accident).exists()

    @property
    def steps(self) -> list[tuple[int, int, float]]:
        """Of each optimizer step: the claim's token, the step, and when it was done."""
        file = self.folder / "steps"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(token), int(step), float(at)) for token, step, at in map(str.split, lines)]

    @property
    def attempts(self) -> list[list[int]]:
        """The steps of each attempt that came to one."""
        return [
            [step for _, step, _ in some] for _, some in itertools.groupby(self.steps, lambda each: each[0])
        ]


@contextlib.contextmanager
def workshop(home: Path, config: str = "", *, worker: bool = False, places: int = 128) -> Iterator[Workshop]:
    """A gateway over a fake engine, in a home with the tiny model's weights. `config`: more of a burnish.toml, its
    [training] table last."""
    write_weights(home / "weights" / MODEL)
    config = config if "[training]" in config else f"{config}\n[training]\n"
    extra = f"{config.rstrip()}\nnice = false\nworker = {json.dumps(worker)}\n"
    with (
        FakeEngine(MODEL) as engine,
        running(home, engines_config(engine, extra=extra, places=places)) as server,
        contextlib.closing(Database(f"sqlite:///{home / 'burnish.db'}")) as db,
    ):
        yield Workshop(server, engine, db)


# -- who asks all the while ------------------------------------------------------------------------
@dataclass
class SteadyClient:
    """Somebody who keeps asking a route while the block lasts."""

    client: openai.OpenAI
    route: str
    asked: Sequence[Question]
    answers: list[tuple[str, str, bool]] = field(default_factory=list)
    """The adapter that the header names, what was said, and whether that is right."""
    failures: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> SteadyClient:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def adapters(self) -> list[str]:
        """Those that have answered, each as long as it did."""
        return [adapter for adapter, _ in itertools.groupby(adapter for adapter, _, _ in self.answers)]

    def ask(self, question: Question) -> tuple[str, str, bool]:
        raw = self.client.chat.completions.with_raw_response.create(
            model=self.route, messages=[{"role": "user", "content": question.text}], max_tokens=40
        )
        text = raw.parse().choices[0].message.content or ""
        return raw.headers["x-burnish-adapter"].split()[0], text, text == question.gold

    def _run(self) -> None:
        for question in itertools.cycle(self.asked):
            if self._stop.wait(0.05):
                return
            try:
                self.answers.append(self.ask(question))
            except Exception as error:
                self.failures.append(error)


@contextlib.contextmanager
def always(look: Callable[[], None], seconds: float = 0.02) -> Iterator[None]:
    """That `look` finds nothing wrong, from the block's begin to its end."""
    stop, wrong = threading.Event(), list[BaseException]()

    def run() -> None:
        while not stop.wait(seconds) and not wrong:
            try:
                look()
            except BaseException as error:
                wrong.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if wrong:
        raise wrong[0]
