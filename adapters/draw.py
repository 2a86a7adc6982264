"""Rows from what people said of a route's completions, and from files.

Owns what each kind of feedback becomes: a correction is preferred to the answer it corrects, a thumb labels the answer
that was given. An answer that was cut off is never learned from, only its correction. Runs learn from these rows, and
an export writes them. Knows neither filters nor methods.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from sqlalchemy.engine import Connection

from adapters.completions import Completion, Status, completions_by_id
from adapters.feedback import Feedback, feedback_of_route, last_words
from adapters.messages import Message
from adapters.policy import RoutePolicy
from adapters.rows import Row, RowKind, bounded_lines, parse_training, row_id
from adapters.triggers import ANSWERED
from adapters.turns import answer_of, prompt_of, tools_of, words_of

LeftOut = Counter[str]
"""Why, and how many pieces of feedback, could not become a row."""


def draw_file(path: Path) -> list[Row]:
    """The rows of a training file, whatever their kinds. Raises RowError."""
    with path.open("rb") as stream:
        return list(parse_training(bounded_lines(stream)))


def draw_feedback(
    connection: Connection,
    route: str,
    policy: RoutePolicy | None = None,
    *,
    since: int | None = None,
    left_out: LeftOut | None = None,
) -> list[Row]:
    """What was said of a route's completions, oldest first, of what still counts of it (`last_words`).

    `policy` gives the directions of its scores; `since` is the number of the feedback after which to begin.
    """
    said = last_words(feedback_of_route(connection, route, after_number=since or 0))
    ids = {feedback.completion_id for feedback in said}
    ids |= {feedback.preferred_over for feedback in said if feedback.preferred_over is not None}
    known = completions_by_id(connection, ids)
    return rows_of(said, known, policy or RoutePolicy(), Counter() if left_out is None else left_out)


def rows_of(
    said: Iterable[Feedback], known: Mapping[str, Completion], policy: RoutePolicy, left_out: LeftOut
) -> list[Row]:
    """Pure: the rows of each completion in turn."""
    by_completion: dict[str, list[Feedback]] = defaultdict(list)
    for feedback in said:
        by_completion[feedback.completion_id].append(feedback)
    rows: list[Row] = []
    for id, feedbacks in by_completion.items():
        completion = known.get(id)
        if completion is None or not prompt_of(completion):
            left_out["completion is gone or was not asked in words"] += len(feedbacks)
            continue
        rows += _corrections(completion, feedbacks)
        rows += _preferences(completion, feedbacks, known, left_out)
        rows += _labels(completion, feedbacks, policy, left_out)
    return rows


def _corrections(completion: Completion, feedbacks: Iterable[Feedback]) -> list[Row]:
    """A correction against the answer that was given; alone where there was none, or it says the same."""
    given = _given(completion)
    rows = []
    for feedback in feedbacks:
        if feedback.demonstration is None:
            continue
        is_other = given is not None and words_of(given) != words_of(feedback.demonstration)
        kind = RowKind.PREFERENCE if is_other else RowKind.DEMONSTRATION
        rows.append(_row(kind, completion, feedback, feedback.demonstration, given if is_other else None))
    return rows


def _preferences(
    completion: Completion,
    feedbacks: Iterable[Feedback],
    known: Mapping[str, Completion],
    left_out: LeftOut,
) -> list[Row]:
    rows = []
    for feedback in feedbacks:
        if feedback.preferred_over is None:
            continue
        other = known.get(feedback.preferred_over)
        better, worse = _given(completion, whole=True), None if other is None else _given(other)
        if better is None or worse is None:
            left_out["preference between answers that are not both whole"] += 1
        elif words_of(better) == words_of(worse):
            left_out["preference between equal answers"] += 1
        else:
            rows.append(_row(RowKind.PREFERENCE, completion, feedback, better, worse))
    return rows


def _labels(
    completion: Completion, feedbacks: list[Feedback], policy: RoutePolicy, left_out: LeftOut
) -> list[Row]:
    """One label of a completion at most: what most voices say. One that wrote a correction has said more with it."""
    corrected = {feedback.voice for feedback in feedbacks if feedback.demonstration is not None}
    words: dict[str, list[Feedback]] = defaultdict(list)
    for feedback in feedbacks:
        if feedback.value is not None and feedback.voice not in corrected:
            words[feedback.voice].append(feedback)
    if not words:
        return []
    votes = {voice: _verdict(scores, policy) for voice, scores in words.items()}
    pieces = sum(map(len, words.values()))
    count = sum(1 if liked else -1 for liked in votes.values() if liked is not None)
    if not count:
        left_out["scores that say nothing or contradict each other"] += pieces
        return []
    liked = count > 0
    given = _given(completion, whole=liked)
    if given is None:
        left_out["score of an answer that is not whole"] += pieces
        return []
    voice = next(voice for voice, vote in votes.items() if vote is liked)
    return [_row(RowKind.LABEL, completion, words[voice][0], given, liked=liked)]


def _verdict(scores: Iterable[Feedback], policy: RoutePolicy) -> bool | None:
    """What one voice's scores of one answer say together; None: nothing, or this and that."""
    said = set()
    for feedback in scores:
        score = policy.score(feedback.name)
        if score is not None and feedback.value is not None:
            said.add(score.liked(feedback.value))
    said.discard(None)
    return said.pop() if len(said) == 1 else None


def _given(completion: Completion, *, whole: bool = False) -> Message | None:
    """The answer that was given; None for one that the engine or the client broke off, or none.

    `whole`: nor one that ended at max_tokens. It may be learned from as the worse answer, but not as what to say: its
    end would be learned with it.
    """
    if completion.status not in ANSWERED or (whole and _was_cut(completion)):
        return None
    answer = answer_of(completion)
    # Without what is not there: as a file holds it, and a demonstration is stored.
    return None if answer is None else {name: value for name, value in answer.items() if value is not None}


def _was_cut(completion: Completion) -> bool:
    return completion.status is not Status.IMPORTED and completion.finish_reason in ("length", "max_tokens")


def _row(
    kind: RowKind,
    completion: Completion,
    feedback: Feedback,
    answer: Message,
    rejected: Message | None = None,
    *,
    liked: bool | None = None,
) -> Row:
    prompt, tools = prompt_of(completion), tools_of(completion)
    return Row(
        id=row_id(kind, prompt, answer, rejected, liked, tools),
        kind=kind,
        prompt=prompt,
        answer=answer,
        rejected=rejected,
        liked=liked,
        tools=tools,
        unit=completion.unit,
        key_id=feedback.key_id,
        user=feedback.user or completion.user,
        completion_id=completion.id,
        feedback_id=feedback.id,
        created=feedback.created,
    )
