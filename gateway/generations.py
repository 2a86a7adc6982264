"""Generations: every recorded completion as a trace of Langfuse, and what people say of it as scores on that trace.

Sends them by Langfuse's own SDK (the extra `langfuse`), from an outbox of its own, never from a request; what they are
there, `generation_shapes` says. A trace's id is made of the completion's, so that feedback finds it, from any
gateway and at any time. Words of people (prompts, answers, comments, corrections, users' names, the client's metadata) go
there only where the settings want it.

The SDK is OpenTelemetry underneath: it gets a provider of its own, and sees no span but those made here. Of its
environment variables LANGFUSE_TRACING_ENVIRONMENT, LANGFUSE_RELEASE and LANGFUSE_TRACING_ENABLED count.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters.completions import Completion
from adapters.errors import SettingsError
from adapters.feedback import Feedback
from adapters.outbox import CLOSE_SECONDS, GROUP, Outbox
from adapters.spans import Exporter
from adapters.telemetry_settings import Langfuse
from gateway.generation_shapes import ascii_name, generation_of, metadata_of, scores_of, tags_of, trace_id
from gateway.trace_context import is_of_share

TIMEOUT_SECONDS = 5

IDLE_SECONDS = 3600
"""How often the SDK would send by itself; a group is sent when it is there."""


@dataclass(frozen=True, slots=True)
class Keys:
    public: str
    secret: str


@dataclass(frozen=True, slots=True)
class _Judgement:
    feedback: Feedback
    is_boolean: bool


class Generations:
    """The way to one Langfuse project. `dropped` counts completions and feedback that did not arrive."""

    def __init__(self, settings: Langfuse, environ: Mapping[str, str]) -> None:
        """Raises SettingsError where the SDK or a key is missing."""
        keys = check(settings, environ)
        self._share = settings.sample_share
        self._prompts = settings.prompts
        self._ids = _given_ids()
        self._exporter = _exporter(settings, keys)
        self._provider = _provider(self._ids, environ)
        self._client = _client(settings, keys, self._provider, self._exporter)
        self._tracer = self._provider.get_tracer(
            "langfuse-sdk", importlib.metadata.version("langfuse"), attributes={"public_key": keys.public}
        )
        self._outbox: Outbox[Completion | _Judgement] = Outbox("langfuse", self._deliver, settings.max_queue)

    @property
    def dropped(self) -> int:
        return self._outbox.dropped

    def recorded(self, completion: Completion) -> None:
        """A listener of `Recorder`."""
        if is_of_share(trace_id(completion.id), self._share):
            self._outbox.put(completion)

    def judged(self, feedback: Feedback, *, is_boolean: bool) -> None:
        """Feedback that is on disk; `is_boolean`: its value was true or false."""
        if is_of_share(trace_id(feedback.completion_id), self._share):
            self._outbox.put(_Judgement(feedback, is_boolean))

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Sends what waits, and ends the SDK's threads, as far as that takes no longer than `seconds`."""
        self._outbox.close(seconds * 0.75)
        # In a thread, since the SDK waits for its own as long as they like; it also takes back what it asked to be
        # done at the interpreter's exit.
        ending = threading.Thread(target=self._client.shutdown, name="langfuse end", daemon=True)
        ending.start()
        ending.join(seconds * 0.25)

    # -- in the outbox's thread ------------------------------------------------------------------------
    def _deliver(self, items: list[Completion | _Judgement]) -> str | None:
        scores = []
        for item in items:
            if isinstance(item, _Judgement):
                scores += scores_of(item.feedback, is_boolean=item.is_boolean, words=self._prompts)
            else:
                self._generate(item)
        self._provider.force_flush()
        failure: str | None = self._exporter.take_failure()
        return failure if not scores else self._send(scores) or failure

    def _send(self, scores: list[dict[str, Any]]) -> str | None:
        """By the SDK's client of the API: `create_score` queues, and would not say what became of it."""
        from langfuse.api import CreateScoreRequest
        from langfuse.api.core import ApiError

        requests = [CreateScoreRequest(**score) for score in scores]
        try:
            self._client.api.scores.create(request=requests, request_options={"max_retries": 1})
        except ApiError as error:
            return f"scores: status {error.status_code}"
        return None

    def _generate(self, completion: Completion) -> None:
        from langfuse import LangfuseEmbedding, LangfuseGeneration, propagate_attributes

        self._ids.trace_id = int(trace_id(completion.id), 16)
        self._ids.span_id = int.from_bytes(hashlib.sha256(f"span {completion.id}".encode()).digest()[:8])
        kind = LangfuseEmbedding if completion.endpoint == "/v1/embeddings" else LangfuseGeneration
        began = completion.created
        with propagate_attributes(
            trace_name=ascii_name(completion.route),
            version=completion.variant,
            tags=tags_of(completion),
            metadata=metadata_of(completion),
            user_id=ascii_name(completion.user) if self._prompts and completion.user else None,
        ):
            span = self._tracer.start_span(completion.endpoint, start_time=_nanoseconds(began))
        made = kind(
            otel_span=span,
            langfuse_client=self._client,
            **generation_of(completion, words=self._prompts),
        )
        made.end(end_time=_nanoseconds(began + (completion.total_seconds or 0.0)))


def check(settings: Langfuse, environ: Mapping[str, str]) -> Keys:
    """The project's keys. Raises SettingsError where the SDK or one of them is missing."""
    if importlib.util.find_spec("langfuse") is None:
        raise SettingsError(
            "langfuse.enabled needs Langfuse's SDK, which is not installed: pip install 'burnish[langfuse]'"
        )
    found = {}
    for field in ("public_key_env", "secret_key_env"):
        name = getattr(settings, field)
        found[field] = environ.get(name)
        if not found[field]:
            raise SettingsError(
                f"langfuse.enabled needs the project's keys, and {name} (langfuse.{field}) is not set"
            )
    return Keys(str(found["public_key_env"]), str(found["secret_key_env"]))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


# -- the SDK, which is imported only where it is wanted ----------------------------------------------
def _given_ids() -> Any:
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class GivenIds(IdGenerator):
        """The ids of the next span, as they were set."""

        trace_id = span_id = 0

        def generate_trace_id(self) -> int:
            return self.trace_id

        def generate_span_id(self) -> int:
            return self.span_id

    return GivenIds()


def _exporter(settings: Langfuse, keys: Keys) -> Exporter:
    """As the SDK would make it, but for its telling what has failed."""
    from opentelemetry.exporter.otlp.proto.http import Compression

    basic = base64.b64encode(f"{keys.public}:{keys.secret}".encode()).decode()
    headers = {
        "authorization": f"Basic {basic}",
        "x-langfuse-sdk-name": "python",
        "x-langfuse-sdk-version": importlib.metadata.version("langfuse"),
        "x-langfuse-public-key": keys.public,
        "x-langfuse-ingestion-version": "4",
    }
    url = f"{settings.host.rstrip('/')}/api/public/otel/v1/traces"
    return Exporter(url, headers, TIMEOUT_SECONDS, Compression.Gzip)


def _provider(ids: Any, environ: Mapping[str, str]) -> Any:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    told = {
        "service.name": "burnish",
        "langfuse.environment": environ.get("LANGFUSE_TRACING_ENVIRONMENT", ""),
        "langfuse.release": environ.get("LANGFUSE_RELEASE", ""),
    }
    resource = Resource({name: value for name, value in told.items() if value})
    return TracerProvider(sampler=ALWAYS_ON, resource=resource, id_generator=ids, shutdown_on_exit=False)


def _client(settings: Langfuse, keys: Keys, provider: Any, exporter: Exporter) -> Any:
    from langfuse import Langfuse as Client

    return Client(
        public_key=keys.public,
        secret_key=keys.secret,
        base_url=settings.host.rstrip("/"),
        timeout=TIMEOUT_SECONDS,
        flush_at=GROUP,
        flush_interval=IDLE_SECONDS,
        sample_rate=1.0,
        tracer_provider=provider,
        span_exporter=exporter,
    )
