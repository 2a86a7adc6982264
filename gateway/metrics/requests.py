"""What /metrics tells of requests: how many, how they ended, how long they took, what recorded answers are like.

Owns the names and labels of these families. Reads `tally`, `answer_tally`, `latency` and `admission`, which count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.metrics.families import add_histogram
from gateway.passage import Ending
from gateway.runtime import Runtime
from gateway.traffic import Traffic

PAIR = ["route", "variant"]
BY_VARIANT = ["class", *PAIR]


class RequestMetrics(Collector):
    """The requests of this gateway process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._labels = runtime.labels

    def collect(self) -> Iterable[Metric]:
        yield from self._requests()
        yield from self._latencies()
        yield from self._instead()
        yield from self._answers()
        yield from self._admission()
        yield from self._places()
        yield self._targets()

    def _requests(self) -> Iterable[Metric]:
        ended = CounterMetricFamily(
            "burnish_requests", "Requests that are over, by how they ended.", labels=[*BY_VARIANT, "ending"]
        )
        failed = CounterMetricFamily(
            "burnish_errors", "Errors, by kind, at the variant that failed.", labels=[*BY_VARIANT, "error"]
        )
        took = HistogramMetricFamily(
            "burnish_request_seconds",
            "From the first byte to the last, of requests that were answered whole.",
            labels=BY_VARIANT,
        )
        tokens = CounterMetricFamily(
            "burnish_tokens", "Tokens that requests took, by usage.", labels=[*BY_VARIANT, "direction"]
        )
        for (traffic, pair), counts in self._runtime.tally.requests.copy().items():
            labels = (traffic.value, *pair)
            for ending in Ending:  # with its 0, or the first error would be no increase
                ended.add_metric([*labels, ending.value], counts.endings[ending])
            for error, count in dict(counts.errors).items():
                failed.add_metric([*labels, error], count)
            if counts.seconds.count:
                add_histogram(took, labels, counts.seconds)
            tokens.add_metric([*labels, "prompt"], counts.prompt_tokens)
            tokens.add_metric([*labels, "completion"], counts.answer_tokens)
        yield from (ended, failed, took, tokens)

    def _latencies(self) -> Iterable[Metric]:
        families = {
            "ttft": HistogramMetricFamily(
                "burnish_time_to_first_token_seconds",
                "From a streamed request to its first token.",
                labels=BY_VARIANT,
            ),
            "itl": HistogramMetricFamily(
                "burnish_inter_token_latency_seconds", "Between two pieces of a stream.", labels=BY_VARIANT
            ),
        }
        for found in self._runtime.latencies.histograms():
            labels = (found.traffic.value, found.route, found.variant)
            add_histogram(families[found.kind], labels, found.measured)
        yield from families.values()

    def _instead(self) -> Iterable[Metric]:
        tally = self._runtime.tally
        waited = HistogramMetricFamily(
            "burnish_queue_seconds", "What requests waited for a place.", labels=["class", "base_model"]
        )
        for (traffic, base), seconds in tally.queued.copy().items():
            add_histogram(waited, (traffic.value, base), seconds)
        yield waited
        fail_overs = CounterMetricFamily(
            "burnish_fail_overs", "Requests that the control answered in the variant's stead.", labels=PAIR
        )
        for pair, count in dict(tally.fail_overs).items():
            fail_overs.add_metric(pair, count)
        yield fail_overs
        in_flight: Counter[tuple[str, str]] = Counter()
        for (traffic, route), count in self._runtime.latencies.in_flight().items():
            in_flight[traffic.value, self._labels.of_route(route)] += count
        under_way = GaugeMetricFamily(
            "burnish_in_flight", "Requests under way, those that wait among them.", labels=["class", "route"]
        )
        for labels, count in in_flight.items():
            under_way.add_metric(labels, count)
        yield under_way

    def _answers(self) -> Iterable[Metric]:
        tokens = HistogramMetricFamily(
            "burnish_answer_tokens", "How long recorded answers are, in tokens.", labels=PAIR
        )
        texts = CounterMetricFamily(
            "burnish_answer_texts", "Recorded answers that say something in words.", labels=PAIR
        )
        refusals = CounterMetricFamily(
            "burnish_refusals", "Those of them that begin as answers do that decline.", labels=PAIR
        )
        repetition = HistogramMetricFamily(
            "burnish_repetition", "The share of each text that it had said before.", labels=PAIR
        )
        for pair, answers in self._runtime.answer_tally.answers.copy().items():
            add_histogram(tokens, pair, answers.tokens)
            texts.add_metric(pair, answers.texts)
            refusals.add_metric(pair, answers.refusals)
            add_histogram(repetition, pair, answers.repetition)
        yield from (tokens, texts, refusals, repetition)

    def _admission(self) -> Iterable[Metric]:
        admission = self._runtime.admission
        refused = CounterMetricFamily(
            "burnish_overloaded", "Requests refused since too many waited.", labels=["class"]
        )
        for traffic in Traffic:  # with its 0, or the first refusal would be no increase
            refused.add_metric([traffic.value], admission.refused[traffic])
        yield refused
        yield CounterMetricFamily(
            "burnish_evicted", "Batch lines sent back to wait, for interactive requests.", admission.evicted
        )
        yield GaugeMetricFamily(
            "burnish_headroom",
            "1 less the worst interactive p95 over its target; below 0 where one is missed.",
            admission.headroom,
        )

    def _places(self) -> Iterable[Metric]:
        words = {
            "running": "Requests under way.",
            "waiting": "Requests that wait for a place.",
            "limit": "How many may be under way.",
        }
        places = self._runtime.admission.report()
        for name, text in words.items():
            family = GaugeMetricFamily(f"burnish_places_{name}", text, labels=["class", "base_model"])
            for base, lanes in places.items():
                for traffic, lane in lanes.items():
                    family.add_metric([traffic, base], lane[name])
            yield family

    def _targets(self) -> Metric:
        """Of every name that can be asked, up to as many as have series; `""` is what holds where nothing else does."""
        targets, settings = self._runtime.settings.targets, self._runtime.settings.metrics
        family = GaugeMetricFamily(
            "burnish_latency_target_seconds",
            "What 95 of 100 interactive requests should take at most.",
            labels=["route", "kind"],
        )
        names = [model.id for model in self._runtime.snapshot.models]
        names.sort(key=lambda name: name not in targets.routes)  # those with a target of their own first
        for name in ["", *names[: settings.max_series]]:
            for kind, seconds in zip(("ttft", "itl"), targets.of(name), strict=True):
                family.add_metric([name, kind], seconds)
        return family
