"""A collector on a real socket: it takes OTLP over HTTP, as a Langfuse server it takes scores, and it can fail.

What came is decoded from the protobuf, so that tests read the payload and not what was meant to be sent.
"""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Seen:
    """One span as it came."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    began: int
    ended: int
    attributes: dict[str, Any]
    error: str | None
    state: str
    resource: dict[str, Any]
    scope: str


@dataclass
class Post:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Collector:
    """What it answers may change at any time: `status`, and `hangs` seconds before it."""

    server: ThreadingHTTPServer
    status: int = 200
    hangs: float = 0.0
    posts: list[Post] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def spans(self) -> list[Seen]:
        taken = [post for post in list(self.posts) if post.path.endswith("/v1/traces")]
        return [span for post in taken for span in decoded(post.body)]

    @property
    def scores(self) -> list[dict[str, Any]]:
        taken = [post for post in list(self.posts) if post.path == "/api/public/scores"]
        return [score for post in taken for score in json.loads(post.body)]

    @property
    def everything(self) -> bytes:
        return b"\n".join(post.body for post in list(self.posts))

    def named(self, name: str) -> list[Seen]:
        return [span for span in self.spans if span.name == name]

    def wait(self, count: int, *, name: str | None = None, seconds: float = 20.0) -> list[Seen]:
        """The spans, of that name, once there are so many."""
        until = time.monotonic() + seconds
        while len(found := self.spans if name is None else self.named(name)) < count:
            assert time.monotonic() < until, [span.name for span in self.spans]
            time.sleep(0.02)
        return found

    def wait_for_scores(self, count: int, seconds: float = 20.0) -> list[dict[str, Any]]:
        until = time.monotonic() + seconds
        while len(found := self.scores) < count:
            assert time.monotonic() < until, found
            time.sleep(0.02)
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if collector.hangs:
                collector.released.wait(collector.hangs)
            if collector.status == 200:
                headers = {name.lower(): value for name, value in self.headers.items()}
                collector.posts.append(Post(self.path, headers, body))
            self._answer(collector.status)

        def _answer(self, status: int) -> None:
            is_score = self.path == "/api/public/scores"
            answer = b"{}" if is_score else ExportTraceServiceResponse().SerializeToString()
            kind = "application/json" if is_score else "application/x-protobuf"
            self.send_response(202 if is_score and status == 200 else status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    collector = Collector(server)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def decoded(body: bytes) -> Iterator[Seen]:
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield _seen(span, resource, of_scope.scope.name)


def _seen(span: Span, resource: dict[str, Any], scope: str) -> Seen:
    return Seen(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        error=span.status.message if span.status.code == 2 else None,
        state=span.trace_state,
        resource=resource,
        scope=scope,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return None if kind is None else getattr(value, kind)
