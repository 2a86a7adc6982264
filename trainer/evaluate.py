"""Evaluation on the serving engine: candidate, incumbent and base on the same held-out rows, over HTTP.

Every side is asked the users' own questions, greedily and with the same cap: twice the longest accepted answer and
some, so that no answer worth comparing is cut. Likelihoods are the engine's, of token ids that the trainer's
rendering made. What was answered is kept in a file, so that a killed evaluation asks only the rest. Owns what is asked;
`asking` does the asking, `scoring` says what it is worth, and `gate` what follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection

from adapters.errors import EngineFailed
from adapters.policy import FormatCheck
from adapters.records import existing_version
from adapters.routes import find_route
from adapters.rows import Row, RowKind
from adapters.versions import is_ref
from trainer import measures, scoring
from trainer.asking import Answers, Asker, Body, Refused, opened, question_key
from trainer.judging import question_of, wins_of
from trainer.measures import Answer, Measure
from trainer.progress import Watch, obey
from trainer.rendering import Rendering
from trainer.scoring import SIDES, Told, has_reference

AT_ONCE = 16
"""Questions at a time, of all sides: an engine answers many in little more time than a few. The gateway takes fewer of them
while people wait (promise 7)."""

CAP_FACTOR, CAP_SLACK_TOKENS = 2, 64
CASE_SLACK_TOKENS = 16
"""A case of the regression set is right or not; an answer longer than that is not."""
BEGINNING_TOKENS = 8
"""Enough to know most answers that will not be right."""

MOST_CASES = 50


@dataclass(frozen=True, slots=True)
class Contest:
    """The model names that are asked. `incumbent`: the adapter version that serves now; None: the base does."""

    candidate: str
    incumbent: str | None
    base: str
    default: str | None = None
    """What the route's default was when the contest began; None: whom the candidate is held against."""

    @property
    def names(self) -> dict[str, str]:
        """By side, without the one that there is not."""
        every = zip(SIDES, (self.candidate, self.incumbent, self.base), strict=True)
        return {side: name for side, name in every if name is not None}

    @property
    def rival(self) -> str:
        return "incumbent" if self.incumbent else "base"


@dataclass(frozen=True, slots=True)
class Evaluation:
    measures: tuple[Measure, ...]
    counts: dict[str, Any] = field(hash=False)
    """What a person should know beside the measures: the cap, answers that were cut, questions that were refused."""


Views = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """A text as ids, and the trainer's log-probabilities of the ids from `start` (at least 1) on, in nats: once for
    each precision that an engine may compute in."""

    ids: tuple[int, ...]
    start: int
    seen: Views


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the engine's log-probabilities are from the trainer's, in nats a token."""

    rows: int
    mean: float
    worst_mean: float
    max: float

    def report(self) -> dict[str, Any]:
        return {"rows": self.rows, "mean": self.mean, "worst_row_mean": self.worst_mean, "max": self.max}


def evaluate(
    asker: Asker,
    contest: Contest,
    held_out: Sequence[Row],
    cases: Sequence[Row],
    rendering: Rendering,
    cache: Path,
    watch: Watch,
    *,
    method: str,
    max_model_len: int,
    form: FormatCheck | None = None,
    judge_model: str | None = None,
) -> Evaluation:
    """Asks everything that the measures need. `cases`: the regression set (see `regression_cases`); `method`: how
    the candidate has learned, never "auto".

    Raises Unavailable when nobody answers for long, Paused and Cancelled as the watch wishes.
    """
    with opened(cache) as answers:
        asking = _Asking(asker, answers, watch)
        rows = [_Rendered(row, rendering) for row in held_out]
        cap = CAP_FACTOR * max((len(r.answer_ids) for r in rows), default=0) + CAP_SLACK_TOKENS
        told: dict[str, Told] = {side: Told() for side in contest.names}
        asking.speak(contest.names, rows, lambda r: _within(cap, r, max_model_len), told)
        asking.weigh(contest.names, rows, max_model_len, told)
        lengths = {r.row.id: r.answer_tokens for r in rows}
        made = list(scoring.score(held_out, told, lengths, form or FormatCheck(), method))
        made += _regressions(asking, contest, [_Rendered(row, rendering) for row in cases], max_model_len)
        if judge_model is not None:
            wins = _judge(asking, judge_model, held_out, told["candidate"], told[contest.rival])
            made.append(scoring.judged(held_out, wins, contest.rival))
        counts = {
            "rows": len(rows),
            "cap_tokens": cap,
            "cut": {side: sum(a.truncated for a in t.spoken.values()) for side, t in told.items()},
            "refused": asking.refused,
        }
    return Evaluation(tuple(made), counts)


def parity(
    asker: Asker, model: str, probes: Sequence[Probe], cache: Path, watch: Watch, tolerance: float
) -> Parity:
    """That the engine serves what was trained: its log-probabilities of the probes against the trainer's, in whichever
    precision they are nearer.

    Without probes there is the canary's fingerprint alone. Raises EngineFailed(code="parity_failed") where a row's mean difference is above the tolerance.
    """
    with opened(cache) as answers:
        questions = [_likelihood(model, probe.ids, probe.start) for probe in probes]
        found = _Asking(asker, answers, watch).ask(questions)
    if not probes:
        return Parity(0, 0.0, 0.0, 0.0)
    gaps = [_gaps(probe, logprobs) for probe, logprobs in zip(probes, found, strict=True)]
    means = [math.fsum(gap) / len(gap) for gap in gaps]
    agreed = Parity(len(gaps), math.fsum(means) / len(means), max(means), max(map(max, gaps)))
    if agreed.worst_mean > tolerance:
        raise EngineFailed(
            f"The engine does not serve what was trained: its log-probabilities differ by {agreed.worst_mean:.3g} "
            f"nats a token on average ({tolerance:g} are tolerated), by {agreed.max:.3g} at most.",
            code="parity_failed",
        )
    return agreed


def probes_of(seen: Mapping[str, Views], rows: Iterable[Row], rendering: Rendering) -> list[Probe]:
    """The probes of the rows whose answers the trainer has numbers of, by row id."""
    rendered = [_Rendered(row, rendering) for row in rows if row.id in seen]
    return [Probe((*r.prompt_ids, *r.answer_ids), len(r.prompt_ids), seen[r.row.id]) for r in rendered]


def contest_of(connection: Connection, payload: Mapping[str, Any], candidate: str) -> Contest:
    """Whom a candidate must be better than: the default of the route that it is for, where that can answer."""
    base = payload["base_model"]
    route = find_route(connection, payload.get("route") or payload["adapter"])
    if route is None:
        return Contest(candidate, None, base)
    default = route.variant
    serves = default != base and (not is_ref(default) or existing_version(connection, default).routable)
    return Contest(candidate, default if serves else None, base, default)


def regression_cases(drawn: Iterable[Row], held_out: Iterable[Row], most: int = MOST_CASES) -> list[Row]:
    """Of all that was ever said of a route: the answers that were disliked and then put right, the newest first.

    What is held out is asked anyway. Rows that a run has learned from are cases all the same: this is no place to
    show a gain, but one to show that nothing broke.
    """
    known = {row.id for row in held_out}
    fixed = [
        row for row in drawn if row.kind is not RowKind.LABEL and row.feedback_id and row.id not in known
    ]
    return sorted(fixed, key=lambda row: (-row.created, row.id))[:most]


class _Rendered:
    """A row with its token ids."""

    def __init__(self, row: Row, rendering: Rendering) -> None:
        self.row = row
        self.prompt_ids, self.answer_ids = rendering.ids(row.prompt, row.answer, row.tools)
        self.rejected_ids: list[int] | None = None
        if row.rejected is not None:
            self.rejected_ids = rendering.ids(row.prompt, row.rejected, row.tools)[1]

    @property
    def answer_tokens(self) -> int:
        """Of what may be said; 0 where nothing here may."""
        return len(self.answer_ids) if has_reference(self.row) else 0


@dataclass(frozen=True, slots=True)
class _Question:
    path: str
    body: Body
    read: Callable[[Body], Any]
    """What is kept of an answer, as JSON. Raises LookupError, TypeError or ValueError where it is none."""


class _Asking:
    """Questions to a live gateway, a few at a time; the watch is asked in between."""

    def __init__(self, asker: Asker, answers: Answers, watch: Watch) -> None:
        self.refused: dict[str, int] = {}
        self._asker = asker
        self._answers = answers
        self._watch = watch
        self._asked = self._total = 0

    def ask(self, questions: Sequence[_Question]) -> list[Any]:
        """The answers in order; None where one was refused. The same question is asked once."""
        keys = [question_key(question.path, question.body) for question in questions]
        todo = {k: q for k, q in zip(keys, questions, strict=True) if self._answers.get(k) is None}
        self._total += len(todo)
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            self._follow({pool.submit(self._one, key, question) for key, question in todo.items()})
        except BaseException:
            self._asker.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        found = [self._answers.get(key) for key in keys]
        for answer in found:
            if "refused" in answer:
                self.refused[answer["refused"]] = self.refused.get(answer["refused"], 0) + 1
        return [answer.get("is") for answer in found]

    def speak(
        self,
        names: Mapping[str, str],
        rows: Sequence[_Rendered],
        cap: Callable[[_Rendered], int | None],
        told: Mapping[str, Told],
    ) -> None:
        """What each side says to each row's prompt."""
        caps = [(r.row, cap(r)) for r in rows]
        asked = [
            (side, row, _speech(model, row, most))
            for side, model in names.items()
            for row, most in caps
            if most is not None
        ]
        found = self.ask([question for *_, question in asked])
        for (side, row, _), answer in zip(asked, found, strict=True):
            if answer is not None:
                told[side].spoken[row.id] = Answer(**answer)

    def weigh(
        self,
        names: Mapping[str, str],
        rows: Sequence[_Rendered],
        max_model_len: int,
        told: Mapping[str, Told],
    ) -> None:
        """How likely each side finds each row's answers."""
        asked: list[tuple[dict[str, float], str, _Question]] = []
        for side, model in names.items():
            for r in rows:
                for kept, ids in (
                    (told[side].accepted_nll, r.answer_ids),
                    (told[side].rejected_nll, r.rejected_ids),
                ):
                    if ids is not None and len(r.prompt_ids) + len(ids) < max_model_len:
                        question = _likelihood(model, (*r.prompt_ids, *ids), len(r.prompt_ids))
                        asked.append((kept, r.row.id, question))
        found = self.ask([question for *_, question in asked])
        for (kept, id, _), logprobs in zip(asked, found, strict=True):
            loss = measures.nll(logprobs)
            if loss is not None:
                kept[id] = loss

    def _one(self, key: str, question: _Question) -> None:
        try:
            answer = {"is": question.read(self._asker.post(question.path, question.body))}
        except Refused as error:
            answer = {"refused": str(error)[:200]}
        except (LookupError, TypeError, ValueError):
            answer = {"refused": "an answer that could not be read"}
        self._answers.put(key, answer)

    def _follow(self, asked: set[Future[None]]) -> None:
        while asked:
            done, asked = wait(asked, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            self._asked += len(done)
            obey(self._watch.step({"evaluated": self._asked, "to_evaluate": self._total}))


def _regressions(
    asking: _Asking, contest: Contest, cases: Sequence[_Rendered], max_model_len: int
) -> list[Measure]:
    """First the rival alone: only what it answers right can be broken, and most of what it does not begins otherwise."""
    told = {contest.rival: Told(), "candidate": Told()}
    rival = {contest.rival: contest.names[contest.rival]}

    def cap(r: _Rendered) -> int | None:
        return _within(r.answer_tokens + CASE_SLACK_TOKENS, r, max_model_len)

    def beginning(r: _Rendered) -> int | None:
        whole = cap(r)
        return whole if whole is None or r.row.tools else min(whole, BEGINNING_TOKENS)  # half a call is none

    asking.speak(rival, cases, beginning, told)
    hopeful = [r for r in cases if _begins_right(told[contest.rival], r.row)]
    asking.speak(rival, hopeful, cap, told)
    right = [r for r in hopeful if _is_right(told[contest.rival], r.row)]
    asking.speak({"candidate": contest.candidate}, right, cap, told)
    return [scoring.regressions([r.row for r in right], told)] if right else []


def _begins_right(told: Told, row: Row) -> bool:
    answer = told.spoken.get(row.id)
    return answer is not None and measures.begins(answer, measures.text_of(row.answer))


def _is_right(told: Told, row: Row) -> bool:
    answer = told.spoken.get(row.id)
    return answer is not None and measures.exact_match(answer, measures.text_of(row.answer)) == 1.0


def _judge(asking: _Asking, model: str, rows: Sequence[Row], ours: Told, theirs: Told) -> dict[str, float]:
    """The share of its two words, one with the sides swapped, that a judge gives the candidate, by row."""
    both = [row for row in rows if row.id in ours.spoken and row.id in theirs.spoken]
    whole = [row for row in both if not (ours.spoken[row.id].truncated or theirs.spoken[row.id].truncated)]
    orders = [(row, is_first) for row in whole for is_first in (True, False)]
    questions = []
    for row, is_first in orders:
        texts = (ours.spoken[row.id].text, theirs.spoken[row.id].text)
        body = {"model": model, **question_of(row, *(texts if is_first else texts[::-1]))}
        questions.append(_Question("/v1/chat/completions", body, lambda answer: _said(answer)["text"]))
    return wins_of([(row.id, is_first) for row, is_first in orders], asking.ask(questions))


def _speech(model: str, row: Row, cap: int) -> _Question:
    """The user's own question, answered greedily."""
    body: Body = {"model": model, "temperature": 0, "max_tokens": cap}
    if isinstance(row.prompt, str):
        return _Question("/v1/completions", {**body, "prompt": row.prompt}, _said)
    tools = {"tools": row.tools} if row.tools else {}
    return _Question("/v1/chat/completions", {**body, "messages": row.prompt, **tools}, _said)


def _said(answer: Body) -> dict[str, Any]:
    choice = answer["choices"][0]
    text = choice["text"] if "text" in choice else measures.text_of(choice["message"])
    truncated = choice["finish_reason"] == "length"
    return {"text": text, "tokens": int(answer["usage"]["completion_tokens"]), "truncated": truncated}


def _likelihood(model: str, ids: Sequence[int], start: int) -> _Question:
    """The log-probabilities of `ids` from `start` on, given those before; the first id of all has none."""
    first = max(1, start)

    def read(answer: Body) -> list[float]:
        values = answer["choices"][0]["logprobs"]["token_logprobs"][first : len(ids)]
        if len(values) != len(ids) - first or not all(math.isfinite(value) for value in values):
            raise ValueError
        return [float(value) for value in values]

    body = {
        "model": model,
        "prompt": list(ids),
        "echo": True,
        "logprobs": 1,
        "max_tokens": 1,
        "temperature": 0,
    }
    return _Question("/v1/completions", body, read)


def _within(cap: int, r: _Rendered, max_model_len: int) -> int | None:
    """The cap, or what the context leaves of it; None where that is too little for the accepted answer."""
    most = min(cap, max_model_len - len(r.prompt_ids) - 1)
    return most if most >= r.answer_tokens + min(CASE_SLACK_TOKENS, cap - r.answer_tokens) else None


def _gaps(probe: Probe, logprobs: Sequence[float] | None) -> list[float]:
    """Of the nearest precision."""
    if not logprobs or any(len(logprobs) != len(view) for view in probe.seen):
        raise EngineFailed("The engine gave no log-probabilities of a probe.", code="parity_failed")
    every = [[abs(a - b) for a, b in zip(view, logprobs, strict=True)] for view in probe.seen]
    return min(every, key=math.fsum)
