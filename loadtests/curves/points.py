"""What the answers of one level come to: percentiles of latency, tokens and requests a second. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtests.percentiles import Percentiles, percentile
from loadtests.stream import Answer, Loop


@dataclass(frozen=True, slots=True)
class Point:
    """One level of a curve. Latencies are of the requests that were asked within its time, rates of what came in it."""

    target: str  # who was asked: a name for the table
    streams: int
    adapters: int  # asked in turn; 0: the base model
    seconds: float
    requests: int
    errors: int
    ttft: Percentiles  # seconds
    itl: Percentiles
    stream_rate_p5: float  # tokens a second of one answer, after its first token
    stream_rate_p50: float
    answer_tokens_per_second: float
    prompt_tokens_per_second: float  # of the requests that ended within the time
    requests_per_second: float
    late_p99_seconds: float  # how late the client itself sent
    first_error: str | None

    @classmethod
    def of(cls, target: str, streams: int, adapters: int, loop: Loop) -> Point:
        asked = [one for one in loop.answers if _is_within(one.at_seconds, loop)]
        good = [one for one in asked if one.error is None]
        bad = [one.error for one in asked if one.error is not None]
        seconds = loop.end_seconds - loop.begin_seconds
        ended = [
            one
            for one in loop.answers
            if one.error is None and _is_within(one.at_seconds + one.total_seconds, loop)
        ]
        rates = [rate for one in good if (rate := _rate(one)) is not None]
        return cls(
            target=target,
            streams=streams,
            adapters=adapters,
            seconds=seconds,
            requests=len(asked),
            errors=len(bad),
            ttft=Percentiles.of(
                [float("inf") if one.ttft_seconds is None else one.ttft_seconds for one in asked]
            ),
            itl=Percentiles.of([gap for one in loop.answers for gap in _gaps_within(one, loop)]),
            stream_rate_p5=percentile(rates, 0.05),
            stream_rate_p50=percentile(rates, 0.5),
            answer_tokens_per_second=sum(_tokens_within(one, loop) for one in loop.answers) / seconds,
            prompt_tokens_per_second=sum(one.prompt_tokens or 0 for one in ended) / seconds,
            requests_per_second=len(ended) / seconds,
            late_p99_seconds=percentile([one.late_seconds for one in asked], 0.99),
            first_error=bad[0] if bad else None,
        )

    def costs_per_million(self, price_per_hour: float) -> tuple[float, float]:
        """What a million tokens cost of an engine at that price: of prompts and answers together, and of answers where all
        of it is put on them; infinite where there were none."""
        answers = self.answer_tokens_per_second
        both = answers + self.prompt_tokens_per_second
        each = (1e6 * price_per_hour / (3600 * rate) if rate else float("inf") for rate in (both, answers))
        return next(each), next(each)


def _is_within(at_seconds: float, loop: Loop) -> bool:
    return loop.begin_seconds <= at_seconds < loop.end_seconds


def _token_times(answer: Answer) -> Sequence[float]:
    """When each piece came, on the loop's clock."""
    if answer.ttft_seconds is None:
        return ()
    first = answer.at_seconds + answer.ttft_seconds
    return tuple(itertools.accumulate(answer.gaps_seconds, initial=first))


def _tokens_within(answer: Answer, loop: Loop) -> float:
    """Its tokens that came within the time; a piece has the mean number of them. None is counted of an answer that
    broke off, since it has told no usage."""
    times = _token_times(answer)
    if not times or answer.answer_tokens is None:
        return 0.0
    return sum(_is_within(at, loop) for at in times) * answer.answer_tokens / len(times)


def _gaps_within(answer: Answer, loop: Loop) -> Iterator[float]:
    """Those that ended within the time."""
    times = _token_times(answer)
    return (later - earlier for earlier, later in itertools.pairwise(times) if _is_within(later, loop))


def _rate(answer: Answer) -> float | None:
    """Tokens a second after the first; None where there is but one piece, or no usage."""
    took = sum(answer.gaps_seconds)
    if not took or answer.answer_tokens is None:
        return None
    pieces = len(answer.gaps_seconds) + 1
    return answer.answer_tokens * (pieces - 1) / pieces / took
