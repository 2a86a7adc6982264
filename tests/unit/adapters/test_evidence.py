"""From rows to sufficient sums: who counts, how often, and who does not."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.changes import changing
from adapters.completions import Completions, insert_completions
from adapters.database import Database
from adapters.evidence import Epoch, Evidence, Voice, capped, gather, newest, scaled
from adapters.experiment_records import Experiment, ExperimentState, reshare
from adapters.experiments import Experiments, scores_of
from adapters.feedback import Draft, give
from adapters.forget import forget_user
from adapters.plans import Metric, Plan
from adapters.policy import Score, ScoreKind, parse_policy
from adapters.registry import Registry
from adapters.routes import Routes
from tests.judged import completion
from tests.observed import answer, crowd, plan, proved_versions, word, write

CONTROL, CHALLENGER = "support@1", "support@2"
SCORES = [
    {"name": "stars", "kind": "number", "low": 1, "high": 5},
    {"name": "spam", "higher_is_better": False},
]


@pytest.fixture
def routes(db: Database, registry: Registry, tmp_path: Path) -> Routes:
    proved_versions(registry, tmp_path)
    routes = Routes(db)
    routes.change_policy("support", {"scores": SCORES}, "anna")
    return routes


def began(db: Database, routes: Routes, wanted: Plan | None = None) -> Experiment:
    return Experiments(db, routes).create("support", wanted or plan(), "anna", now=2000.0)


@pytest.fixture
def experiment(db: Database, routes: Routes) -> Experiment:
    """support@1 against support@2, begun at second 2000."""
    return began(db, routes)


def seen(db: Database, experiment: Experiment) -> Evidence:
    policy = parse_policy({"scores": SCORES})
    with db.read() as connection:
        return gather(connection, experiment, scores_of(experiment.plan, policy))


def rating(evidence: Evidence, variant: str = CHALLENGER) -> tuple[int, float]:
    """Voices and the sum of what they said."""
    sums = evidence.arm(variant).scores["rating"]
    return sums.n, sums.y


# -- whose word counts -----------------------------------------------------------------------------
def test_before_anything_was_said_there_is_nothing_to_see(db: Database, experiment: Experiment) -> None:
    evidence = seen(db, experiment)
    assert set(evidence.arms) == {CONTROL, CHALLENGER}
    for arm in evidence.arms.values():
        assert (arm.answers, arm.units, arm.metrics, arm.without_key) == (0, 0, {}, {})
        assert arm.scores["rating"].n == 0
    assert evidence.epochs == ()


def test_promise_10_one_voice_is_one_entry_however_often_it_talks(
    db: Database, experiment: Experiment
) -> None:
    loud = [answer(experiment, CHALLENGER, "loud") for _ in range(20)]
    write(db, loud, [word(judged, float(n % 4 == 0)) for n, judged in enumerate(loud)])
    crowd(db, experiment, CHALLENGER, 2, liked=2)
    assert rating(seen(db, experiment)) == (3, 2.25)
    assert seen(db, experiment).arm(CHALLENGER).answers == 22
    assert seen(db, experiment).arm(CHALLENGER).units == 3


def test_promise_02_the_last_word_of_a_voice_on_an_answer_counts(
    db: Database, experiment: Experiment
) -> None:
    judged = answer(experiment, CHALLENGER, "u1")
    write(db, [judged], [word(judged, 1.0, created=9000.0)])
    assert rating(seen(db, experiment)) == (1, 1.0)
    write(db, [], [word(judged, 0.0, created=10.0)])  # by the order of arrival, whatever the clocks say
    assert rating(seen(db, experiment)) == (1, 0.0)


def test_two_people_may_judge_one_answer(db: Database, experiment: Experiment) -> None:
    judged = answer(experiment, CHALLENGER, "u1")
    write(db, [judged], [word(judged, 1.0), word(judged, 0.0, user="a colleague")])
    assert rating(seen(db, experiment)) == (2, 1.0)


def test_feedback_that_comes_twice_counts_once_and_late_feedback_counts(
    db: Database, experiment: Experiment
) -> None:
    judged = answer(experiment, CHALLENGER, "u1")
    write(db, [judged])
    assert rating(seen(db, experiment)) == (0, 0.0)
    for _ in range(3):
        with db.begin() as connection:
            give(connection, Draft(judged.id, value=True), None, idempotency_key="k", now=9e9)
    assert rating(seen(db, experiment)) == (1, 1.0)


def test_a_comment_later_does_not_take_a_thumb_back(db: Database, experiment: Experiment) -> None:
    judged = answer(experiment, CHALLENGER, "u1")
    write(db, [judged], [word(judged, 1.0), replace(word(judged, 0.0), value=None, comment="hm")])
    assert rating(seen(db, experiment)) == (1, 1.0)


def test_what_was_not_assigned_is_no_evidence(db: Database, experiment: Experiment) -> None:
    """What a client pinned, and what answered before or beside the experiment, has no observation."""
    pinned = completion(user="u1", variant=CHALLENGER, pinned=True)
    other = replace(answer(experiment, CHALLENGER, "u2"), observation=None)
    write(db, [pinned, other], [word(pinned, 1.0), word(other, 1.0)])
    assert rating(seen(db, experiment)) == (0, 0.0)


def test_another_experiments_answers_are_its_own(
    db: Database, routes: Routes, experiment: Experiment
) -> None:
    crowd(db, experiment, CHALLENGER, 5, liked=5)
    Experiments(db, routes).stop(experiment.name, "anna")
    again = began(db, routes)
    assert rating(seen(db, again)) == (0, 0.0)
    assert rating(seen(db, experiment)) == (5, 5.0)


def test_an_answer_that_failed_over_is_an_error_and_nothing_else(
    db: Database, experiment: Experiment
) -> None:
    judged = answer(experiment, CHALLENGER, "u1", failed_over=True, error=1.0)
    fine = answer(experiment, CHALLENGER, "u2", log_ttft=0.0)
    write(db, [judged, fine], [word(judged, 1.0), word(fine, 1.0)])
    evidence = seen(db, experiment)
    assert rating(evidence) == (1, 1.0)
    arm = evidence.arm(CHALLENGER)
    assert (arm.metrics[Metric.ERRORS].n, arm.metrics[Metric.ERRORS].mean) == (2, 0.5)
    assert arm.metrics[Metric.TTFT].n == 1


def test_nobody_has_judged_what_was_answered_in_the_shadow(db: Database, routes: Routes) -> None:
    experiment = began(db, routes, plan(policy="shadow"))
    real = answer(experiment, CONTROL, "u1")
    shadow = answer(experiment, CHALLENGER, "u1", shadow_of=real.id, log_length=2.0)
    write(db, [real, shadow], [word(real, 1.0)])
    evidence = seen(db, experiment)
    assert rating(evidence, CONTROL) == (1, 1.0)
    assert rating(evidence, CHALLENGER) == (0, 0.0)
    assert evidence.arm(CHALLENGER).metrics[Metric.LENGTH].mean == 2.0
    assert [epoch.units for epoch in evidence.epochs] == [{CONTROL: 1}], "its units were assigned to nobody"


AWKWARD = ["ü", "a'b\"c", "x%y_z", "back\\slash", "user:user:1", "🦊", "a\nb", "'; DROP TABLE feedback"]


def test_names_of_users_are_only_names(db: Database, experiment: Experiment) -> None:
    answers = [answer(experiment, CHALLENGER, user) for user in AWKWARD]
    write(db, answers, [word(judged, 1.0) for judged in answers])
    evidence = seen(db, experiment)
    assert evidence.arm(CHALLENGER).units == len(AWKWARD)
    assert rating(evidence) == (len(AWKWARD), float(len(AWKWARD)))


# -- scales ----------------------------------------------------------------------------------------
def test_every_score_is_counted_from_the_worst_to_the_best(db: Database, routes: Routes) -> None:
    experiment = began(db, routes, plan(scores=["stars", "spam", "rating"]))
    judged = [answer(experiment, CHALLENGER, f"u{n}") for n in range(4)]
    write(
        db,
        judged,
        [
            word(judged[0], 1, name="stars"),
            word(judged[1], 4, name="stars"),
            word(judged[2], 1, name="spam"),
            word(judged[3], 0, name="spam"),
            word(judged[3], 0, name="spam", user="another"),
        ],
    )
    scores = seen(db, experiment).arm(CHALLENGER).scores
    assert (scores["stars"].n, scores["stars"].y) == (2, 0.75)
    assert (scores["spam"].n, scores["spam"].y) == (3, 2.0)
    assert scores["rating"].n == 0


@given(value=st.floats(-100, 100), low=st.floats(-50, 49), width=st.floats(0.1, 100), up=st.booleans())
def test_a_scaled_value_lies_between_0_and_1_and_better_is_more(
    value: float, low: float, width: float, up: bool
) -> None:
    score = Score("s", ScoreKind.NUMBER, low, low + width, up)
    assert 0 <= scaled(score, value) <= 1
    better = value + 1 if up else value - 1
    assert scaled(score, better) >= scaled(score, value)


# -- measures --------------------------------------------------------------------------------------
def test_a_units_entry_is_the_mean_of_its_answers_that_were_measured(
    db: Database, experiment: Experiment
) -> None:
    write(
        db,
        [
            answer(experiment, CONTROL, "u1", log_ttft=1.0, error=1.0),
            answer(experiment, CONTROL, "u1", log_ttft=3.0),
            answer(experiment, CONTROL, "u1"),
            answer(experiment, CONTROL, "u2"),
        ],
    )
    arm = seen(db, experiment).arm(CONTROL)
    assert (arm.answers, arm.units) == (4, 2)
    assert (arm.metrics[Metric.TTFT].n, arm.metrics[Metric.TTFT].y) == (1, 2.0)
    assert (arm.metrics[Metric.ERRORS].n, arm.metrics[Metric.ERRORS].y) == (2, pytest.approx(1 / 3))
    assert Metric.MALFORMED not in arm.metrics, "what was never measured has no sums"


@pytest.mark.parametrize(
    ("policy", "of_answers", "of_words"),
    [("test", 6, 6), ("fixed", 6, 6), ("adaptive", 3, 6), ("canary", 3, 3)],
)
def test_where_shares_change_by_a_schedule_only_the_present_ones_are_compared(
    db: Database, routes: Routes, policy: str, of_answers: int, of_words: int
) -> None:
    experiment = Experiments(db, routes).create(
        "support", plan(CHALLENGER, policy=policy), "anna", now=1000.0
    )
    early = [answer(experiment, CHALLENGER, f"u{n}") for n in range(5)]
    write(db, early, [word(judged, 1) for judged in early])
    with changing(db) as connection:
        later = reshare(connection, experiment, {CONTROL: 0.2, CHALLENGER: 0.8}, "a", 3000.0)
    late = [answer(later, CHALLENGER, name) for name in ("u1", "u2", "new")]
    write(db, late, [word(judged, 0) for judged in late])
    arm = seen(db, later).arm(CHALLENGER)
    assert (arm.units, arm.metrics[Metric.ERRORS].n, arm.scores["rating"].n) == (
        of_answers,
        of_answers,
        of_words,
    )
    held_back = replace(later, state=ExperimentState.MEASURING)
    assert seen(db, held_back).arm(CHALLENGER).scores["rating"].n == 3


# -- the split -------------------------------------------------------------------------------------
def test_a_unit_counts_once_for_the_split_where_it_first_came(db: Database, experiment: Experiment) -> None:
    write(db, [answer(experiment, CONTROL, "u1"), answer(experiment, CHALLENGER, "u2")])
    with changing(db) as connection:
        later = reshare(connection, experiment, {CONTROL: 0.2, CHALLENGER: 0.8}, "a", 3000.0)
    write(db, [answer(later, CHALLENGER, "u1"), answer(later, CHALLENGER, "u2")])
    write(db, [answer(later, CHALLENGER, "u3"), answer(later, CHALLENGER, "u3")])
    assert seen(db, later).epochs == (
        Epoch({CONTROL: 0.5, CHALLENGER: 0.5}, {CONTROL: 1, CHALLENGER: 1}),
        Epoch({CONTROL: 0.2, CHALLENGER: 0.8}, {CHALLENGER: 1}),
    )


# -- promise 10: keys ------------------------------------------------------------------------------
def by_key(counts: dict[str, int]) -> list[Voice]:
    return [Voice(f"{key}-{n}", key, 1.0, None) for key, count in counts.items() for n in range(count)]


@given(
    counts=st.dictionaries(st.text("abcdef", min_size=1, max_size=1), st.integers(1, 60), max_size=6),
    most=st.floats(0.05, 1),
)
def test_promise_10_no_key_has_more_than_its_share_of_a_variants_voices(
    counts: dict[str, int], most: float
) -> None:
    kept = Counter(voice.key for voice in capped(by_key(counts), most))
    total = kept.total()
    assert all(count <= most * total + 1e-6 for count in kept.values())
    assert all(count <= counts[key] for key, count in kept.items())


@pytest.mark.parametrize(
    ("counts", "most", "kept"),
    [
        ({"a": 90, "b": 10}, 1.0, {"a": 90, "b": 10}),
        ({"a": 90, "b": 10}, 0.5, {"a": 10, "b": 10}),
        ({"a": 90, "b": 10, "c": 10}, 0.5, {"a": 20, "b": 10, "c": 10}),
        ({"a": 100, "b": 100, "c": 10}, 0.4, {"a": 20, "b": 20, "c": 10}),
        ({"a": 5, "b": 5}, 0.4, {}),
        ({"a": 5}, 0.9, {}),
        ({}, 0.5, {}),
    ],
)
def test_promise_10_a_loud_key_keeps_as_many_voices_as_its_share_allows(
    counts: dict[str, int], most: float, kept: dict[str, int]
) -> None:
    found = Counter(voice.key for voice in capped(by_key(counts), most))
    assert all(count <= most * found.total() + 1e-9 for count in found.values())
    assert set(found) == set(kept)
    assert all(abs(found[key] - count) <= 2 for key, count in kept.items())


def test_which_voices_of_a_key_stay_does_not_depend_on_their_order() -> None:
    voices = by_key({"a": 50, "b": 10})
    assert set(capped(voices, 0.5)) == set(capped(voices[::-1], 0.5))


def test_promise_10_a_keys_share_of_the_evidence_is_capped(db: Database, routes: Routes) -> None:
    experiment = began(db, routes, plan(max_share_per_key=0.5))
    crowd(db, experiment, CHALLENGER, 80, liked=80, key_id="key_loud", name="loud")
    crowd(db, experiment, CHALLENGER, 20, liked=0, key_id="key_quiet", name="quiet")
    crowd(db, experiment, CONTROL, 9, liked=9, key_id="key_quiet", name="quiet")
    evidence = seen(db, experiment)
    assert rating(evidence) == (40, 20.0)
    assert rating(evidence, CONTROL) == (0, 0.0), "all are one key's"
    assert evidence.arm(CHALLENGER).units == 100, "how answers went is no opinion"


def test_what_is_left_without_a_key_is_told_where_several_have_spoken(
    db: Database, experiment: Experiment
) -> None:
    crowd(db, experiment, CHALLENGER, 6, liked=6, key_id="key_a", name="a")
    assert seen(db, experiment).arm(CHALLENGER).without_key == {}
    crowd(db, experiment, CHALLENGER, 4, liked=1, name="nobodys")
    crowd(db, experiment, CHALLENGER, 3, liked=2, key_id="key_c", name="c")
    without = seen(db, experiment).arm(CHALLENGER).without_key
    assert {key: (sums.n, sums.y) for key, sums in without.items()} == {
        "key_a": (7, 3.0),
        "": (9, 8.0),
        "key_c": (10, 7.0),
    }


# -- what they said before (CUPED) -----------------------------------------------------------------
def test_what_a_voice_said_before_the_experiment_is_its_covariate(
    db: Database, experiment: Experiment
) -> None:
    before = [completion(user=user) for user in ("u1", "u1", "u2")]
    elsewhere = completion(user="u3", route="sales")
    write(
        db,
        [*before, elsewhere],
        [
            word(before[0], 1.0, created=1999.0),
            word(before[1], 0.0, created=1999.0),
            word(before[2], 1.0, created=1000.0),
            word(before[2], 0.0, created=1001.0),  # its last word
            word(before[2], 1.0, created=2001.0),  # after it began: no covariate
            word(elsewhere, 1.0, created=1000.0),
        ],
    )
    answers = [answer(experiment, CHALLENGER, f"u{n}") for n in (1, 2, 3)]
    write(db, answers, [word(judged, 1.0) for judged in answers])
    sums = seen(db, experiment).arm(CHALLENGER).scores["rating"]
    # u1 was at 0.5, u2 at 0, u3 has no past on this route and stands at their mean.
    assert (sums.n, sums.x, sums.xx) == (3, 0.75, pytest.approx(0.25 + 0.0625))


def test_voices_without_a_past_adjust_nothing(db: Database, experiment: Experiment) -> None:
    crowd(db, experiment, CONTROL, 10, liked=5)
    crowd(db, experiment, CHALLENGER, 10, liked=9)
    for arm in seen(db, experiment).arms.values():
        sums = arm.scores["rating"]
        assert (sums.x, sums.xx, sums.xy) == (0.0, 0.0, 0.0)


# -- what goes -------------------------------------------------------------------------------------
def test_promise_06_a_forgotten_users_answers_and_words_are_evidence_no_more(
    db: Database, routes: Routes, experiment: Experiment, tmp_path: Path
) -> None:
    mine, others = answer(experiment, CHALLENGER, "u1"), answer(experiment, CHALLENGER, "u2")
    shadow = answer(experiment, CHALLENGER, "u1-shadow", shadow_of=mine.id)
    write(db, [mine, others, shadow], [word(mine, 1.0), word(others, 0.0), word(others, 1.0, user="u1")])
    assert rating(seen(db, experiment)) == (2, 1.0)
    forget_user(db, routes, "u1", "anna", run_root=tmp_path)
    evidence = seen(db, experiment)
    assert rating(evidence) == (1, 0.0)
    assert (evidence.arm(CHALLENGER).answers, evidence.arm(CHALLENGER).units) == (1, 1)
    assert [epoch.units for epoch in evidence.epochs] == [{CHALLENGER: 1}]


def test_what_is_deleted_or_too_old_is_evidence_no_more(db: Database, experiment: Experiment) -> None:
    old, deleted, kept = (
        answer(experiment, CHALLENGER, f"u{n}", created=float(created))
        for n, created in enumerate((2000, 9000, 9000))
    )
    write(db, [old, deleted, kept], [word(judged, 1.0) for judged in (old, deleted, kept)])
    assert Completions(db).purge(5000.0, 5000.0) == 1
    assert Completions(db).delete(deleted.id, None)
    assert rating(seen(db, experiment)) == (1, 1.0)
    assert seen(db, experiment).arm(CHALLENGER).answers == 1


# -- whether there is anything new -----------------------------------------------------------------
def test_every_answer_and_every_word_is_something_new(db: Database, experiment: Experiment) -> None:
    def sign() -> tuple[int, int]:
        with db.read() as connection:
            return newest(connection, experiment)

    signs = [sign()]
    judged = answer(experiment, CHALLENGER, "u1")
    for answers, words in (([judged], []), ([], [word(judged, 1.0)]), ([], [word(judged, 1.0)])):
        write(db, answers, words)
        signs.append(sign())
    assert signs == sorted(set(signs))
    write(db, [completion(route="sales")])
    assert sign() == signs[-1]


def test_no_sum_is_ever_nan(db: Database, experiment: Experiment) -> None:
    with db.begin() as connection:
        insert_completions(connection, [answer(experiment, CHALLENGER, "u1")])
    for arm in seen(db, experiment).arms.values():
        for sums in (*arm.metrics.values(), *arm.scores.values()):
            assert all(math.isfinite(value) for value in (sums.n, sums.y, sums.yy, sums.x, sums.xx, sums.xy))
