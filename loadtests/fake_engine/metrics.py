"""vLLM's /metrics: those of its families that a fake engine can fill, with what it really counted.

Follows vllm/v1/metrics/{loggers,buckets}.py: names, labels and bounds. There is no cache of prefixes and no preemption, so
these stay 0; the KV cache in use is what requests in flight hold of a made-up size. Knows neither HTTP nor replies.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from loadtests.fake_engine.settings import Ending
from loadtests.fake_engine.slots import AdapterSlots

KV_CACHE_TOKENS = 65536
"""How many tokens the KV cache that there is not would hold."""

LATENCY_BOUNDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0),
    *(960.0, 1920.0, 7680.0),
)
FIRST_TOKEN_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
NEXT_TOKEN_BOUNDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    80.0,
)
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


def token_bounds(max_model_len: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, … up to the model's length."""
    bounds = (m * 10**e for e in range(len(str(max_model_len))) for m in (1, 2, 5))
    return tuple(float(bound) for bound in bounds if bound <= max_model_len)


@dataclass(slots=True)
class Histogram:
    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class Metrics(Collector):
    """Of one fake engine."""

    def __init__(self, model: str, max_model_len: int, slots: AdapterSlots) -> None:
        self._model = model
        self._max_model_len = max_model_len
        self._slots = slots
        self._running: set[Measured] = set()
        self.reset()

    def reset(self) -> None:
        """As at the start, but for the requests in flight."""
        tokens = token_bounds(self._max_model_len)
        self.prompt_tokens = self.answer_tokens = 0
        self.ended: Counter[str] = Counter(dict.fromkeys(FINISH_REASONS, 0))
        self.asked_tokens, self.said_tokens = Histogram(tokens), Histogram(tokens)
        self.first_token, self.next_token = Histogram(FIRST_TOKEN_BOUNDS), Histogram(NEXT_TOKEN_BOUNDS)
        self.whole, self.queued = Histogram(LATENCY_BOUNDS), Histogram(LATENCY_BOUNDS)

    def begin(self, prompt_tokens: int) -> Measured:
        """A request that the engine takes."""
        measured = Measured(self, prompt_tokens)
        self._running.add(measured)
        return measured

    def end(self, measured: Measured, reason: str) -> None:
        self._running.discard(measured)
        self.ended[reason] += 1
        self.asked_tokens.observe(measured.prompt_tokens)
        self.said_tokens.observe(measured.made)
        self.whole.observe(time.monotonic() - measured.began)

    def text(self) -> bytes:
        """The page, in Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterable[Metric]:
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()
        yield self._adapters()

    def _gauges(self) -> Iterable[Metric]:
        waiting = len(self._slots.waiting)
        held = sum(measured.prompt_tokens + measured.made for measured in self._running)
        told = {
            "num_requests_running": ("Number of requests in model execution batches.", self._in_batch()),
            "num_requests_waiting": ("Number of requests waiting to be processed.", waiting),
            "kv_cache_usage_perc": (
                "KV-cache usage. 1 means 100 percent usage.",
                min(1.0, held / KV_CACHE_TOKENS),
            ),
        }
        for name, (text, value) in told.items():
            family = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name", "engine"])
            family.add_metric([self._model, "0"], value)
            yield family
        name, text = "vllm:num_requests_waiting_by_reason", "Number of waiting requests by reason."
        reasons = GaugeMetricFamily(name, text, labels=["model_name", "engine", "reason"])
        for reason, value in (("capacity", 0), ("deferred", waiting)):
            reasons.add_metric([self._model, "0", reason], value)
        yield reasons

    def _in_batch(self) -> int:
        return len(self._running) - len(self._slots.waiting)

    def _counters(self) -> Iterable[Metric]:
        told = {
            "prefix_cache_queries": (
                "Prefix cache queries, in terms of number of queried tokens.",
                self.prompt_tokens,
            ),
            "prefix_cache_hits": ("Prefix cache hits, in terms of number of cached tokens.", 0),
            "num_preemptions": ("Cumulative number of preemption from the engine.", 0),
            "prompt_tokens": ("Number of prefill tokens processed.", self.prompt_tokens),
            "generation_tokens": ("Number of generation tokens processed.", self.answer_tokens),
        }
        for name, (text, value) in told.items():
            family = CounterMetricFamily(f"vllm:{name}", text, labels=["model_name", "engine"])
            family.add_metric([self._model, "0"], value)
            yield family
        name, text = "vllm:request_success", "Count of successfully processed requests."
        ended = CounterMetricFamily(name, text, labels=["model_name", "engine", "finished_reason"])
        for reason, count in self.ended.items():
            ended.add_metric([self._model, "0", reason], count)
        yield ended

    def _histograms(self) -> Iterable[Metric]:
        told = {
            "request_prompt_tokens": ("Number of prefill tokens processed.", self.asked_tokens),
            "request_generation_tokens": ("Number of generation tokens processed.", self.said_tokens),
            "time_to_first_token_seconds": (
                "Histogram of time to first token in seconds.",
                self.first_token,
            ),
            "inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", self.next_token),
            "e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", self.whole),
            "request_queue_time_seconds": (
                "Histogram of time spent in WAITING phase for request.",
                self.queued,
            ),
        }
        for name, (text, histogram) in told.items():
            family = HistogramMetricFamily(f"vllm:{name}", text, labels=["model_name", "engine"])
            bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
            buckets = list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))
            family.add_metric([self._model, "0"], buckets, histogram.total)
            yield family

    def _adapters(self) -> Metric:
        labels = ["max_lora", "waiting_lora_adapters", "running_lora_adapters"]
        family = GaugeMetricFamily(
            "vllm:lora_requests_info", "Running stats on lora requests.", labels=labels
        )
        named = (
            str(self._slots.size),
            ",".join(sorted(set(self._slots.waiting))),
            ",".join(self._slots.used),
        )
        family.add_metric(named, time.time())
        return family


class Measured:
    """One request, from when it was taken."""

    __slots__ = ("_last", "_metrics", "began", "made", "prompt_tokens")

    def __init__(self, metrics: Metrics, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._last: float | None = None
        self.prompt_tokens = prompt_tokens
        self.made = 0
        self.began = time.monotonic()
        metrics.prompt_tokens += prompt_tokens

    def scheduled(self) -> None:
        """It waits for nothing any more."""
        self._metrics.queued.observe(time.monotonic() - self.began)

    def say(self, tokens: int, steps: int = 1) -> None:
        """`tokens` more, over all choices; where they came at once, after so many steps of the engine."""
        now = time.monotonic()
        if steps and self._last is None:
            self._metrics.first_token.observe(now - self.began)
            self._last, steps = now, steps - 1
        if steps and self._last is not None:
            self._metrics.next_token.observe((now - self._last) / steps, steps)
            self._last = now
        self.made += tokens
        self._metrics.answer_tokens += tokens

    def end(self, ending: Ending, finish_reason: str) -> None:
        self._metrics.end(self, finish_reason if ending is Ending.COMPLETED else "abort")
