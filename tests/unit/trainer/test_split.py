"""Who is held out, and how much of one voice is learned from, over rows of any shape."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.rows import Row
from tests.unit.trainer.tiny import row
from trainer.filters import prompt_key
from trainer.split import (
    Parts,
    cap_voices,
    has_accepted_answer,
    key_of,
    keyed_hash,
    split,
    split_by_file,
    voice_of,
)

UNITS = [f"user:{letter}" for letter in "abcdefghijkl"]
KEYS = [None, "k1", "k2", "k3"]
USERS = [None, "ann", "bob", "cem", "dia", "eve"]


def judged(number: int, unit: int, prompt: int, liked: bool | None = None, **more: Any) -> Row:
    return row(f"q{prompt}", f"a{number}", unit=UNITS[unit % len(UNITS)], liked=liked, **more)


#: Of some units that ask some of so many prompts, their answers all different.
ROWS = st.lists(
    st.tuples(st.integers(0, len(UNITS) - 1), st.integers(0, 39), st.sampled_from([None, True, False])),
    max_size=50,
).map(lambda drawn: [judged(i, unit, prompt, liked) for i, (unit, prompt, liked) in enumerate(drawn)])

VOICES = st.lists(
    st.tuples(st.sampled_from(KEYS), st.sampled_from(USERS), st.integers(0, 3)), max_size=40
).map(
    lambda drawn: [
        row(f"q{i}", unit=f"conversation:{unit}", key_id=key, user=user)
        for i, (key, user, unit) in enumerate(drawn)
    ]
)
SHARES = st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.5, 0.7, 1.0])


def parts_of(rows: Sequence[Row], **changes: Any) -> Parts:
    values: dict[str, Any] = {"share": 0.1, "least_rows": 8, "least_units": 6, "key": "support"}
    return split(rows, **{**values, **changes})


def units(rows: Iterable[Row]) -> set[str]:
    return {each.unit for each in rows}


def prompts(rows: Iterable[Row]) -> set[bytes]:
    return {prompt_key(each) for each in rows}


def accepted(rows: Iterable[Row]) -> list[Row]:
    return [each for each in rows if has_accepted_answer(each)]


def of_sizes(sizes: Sequence[int]) -> list[Row]:
    """Units with so many rows each; every prompt and every answer is its own."""
    return [
        row(f"q{unit}.{number}", unit=f"user:{unit}")
        for unit, size in enumerate(sizes)
        for number in range(size)
    ]


# -- the split -----------------------------------------------------------------------------------------
@given(ROWS, st.sampled_from([0.05, 0.1, 0.5, 0.8]), st.integers(1, 12), st.integers(1, 8))
def test_promise_09_a_unit_and_a_prompt_are_on_one_side_only_and_no_row_is_lost(
    rows: list[Row], share: float, least_rows: int, least_units: int
) -> None:
    parts = parts_of(rows, share=share, least_rows=least_rows, least_units=least_units)
    assert not units(parts.train) & units(parts.held_out)
    assert not prompts(parts.train) & prompts(parts.held_out)
    sides = [each.id for each in (*parts.train, *parts.held_out)]
    assert len(sides) == len(set(sides))
    assert set(sides) <= {each.id for each in rows}
    assert len(sides) + parts.left_out == len(rows)


@given(ROWS, ROWS)
def test_promise_09_what_was_trained_before_is_never_held_out_nor_is_what_it_asks(
    rows: list[Row], trained: list[Row]
) -> None:
    held_out = parts_of(rows, least_rows=20, trained=trained).held_out
    assert not units(held_out) & units(trained)
    assert not prompts(held_out) & prompts(trained)


@given(ROWS, ROWS, ROWS)
def test_promise_09_a_validation_file_is_held_out_but_for_what_was_trained_before(
    rows: list[Row], validation: list[Row], trained: list[Row]
) -> None:
    parts = split_by_file(rows, validation, trained)
    assert not units(parts.train) & units(parts.held_out)
    assert not prompts(parts.train) & prompts(parts.held_out)
    assert not units(parts.held_out) & units(trained)
    assert not prompts(parts.held_out) & prompts(trained)
    for each in validation:
        seen = each.unit in units(trained) or prompt_key(each) in prompts(trained)
        assert (each in parts.held_out) is not seen
    for each in rows:
        seen = each.unit in units(parts.held_out) or prompt_key(each) in prompts(parts.held_out)
        assert (each in parts.train) is not seen
    assert len(parts.train) + len(parts.held_out) + parts.left_out == len(rows) + len(validation)


@given(ROWS, st.integers(0, 2**32))
def test_the_same_rows_in_any_order_are_split_the_same(rows: list[Row], seed: int) -> None:
    mixed = random.Random(seed).sample(rows, len(rows))
    one, other = parts_of(rows), parts_of(mixed)
    assert {each.id for each in one.train} == {each.id for each in other.train}
    assert {each.id for each in one.held_out} == {each.id for each in other.held_out}


@given(ROWS, st.integers(1, 40))
def test_at_most_half_of_the_rows_and_half_of_the_accepted_answers_are_held_out(
    rows: list[Row], least_rows: int
) -> None:
    """So that there is always something left to learn from, be it few likes among many dislikes."""
    parts = parts_of(rows, share=0.8, least_rows=least_rows)
    assert len(parts.held_out) <= len(rows) / 2
    assert len(accepted(parts.held_out)) <= len(accepted(rows)) / 2


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=20),
    st.integers(1, 12),
    st.integers(1, 8),
    st.integers(0, 99),
)
def test_enough_rows_of_enough_units_are_held_out_where_the_smallest_units_have_them_within_half_of_the_rows(
    sizes: list[int], least_rows: int, least_units: int, key: int
) -> None:
    rows = of_sizes(sizes)
    smallest = sorted(sizes)
    possible = any(
        count >= least_units and least_rows <= sum(smallest[:count]) <= len(rows) / 2
        for count in range(1, len(sizes) + 1)
    )
    held_out = parts_of(rows, least_rows=least_rows, least_units=least_units, key=str(key)).held_out
    if possible:
        assert len(held_out) >= least_rows
        assert len(units(held_out)) >= least_units


def test_the_share_is_held_out_where_it_is_more_than_the_least() -> None:
    held_out = parts_of(of_sizes([2] * 200), share=0.2).held_out
    assert len(held_out) == 80


def test_other_keys_hold_out_others() -> None:
    rows = of_sizes([1] * 100)
    assert units(parts_of(rows).held_out) != units(parts_of(rows, key="sales").held_out)


def test_a_unit_with_much_more_rows_than_are_missing_is_learned_from() -> None:
    sizes = [1] * 60 + [30]
    for key in range(20):
        assert "user:60" not in units(parts_of(of_sizes(sizes), key=str(key)).held_out)


def test_a_unit_as_large_as_all_others_is_not_held_out_for_the_sake_of_the_share() -> None:
    """Nine single rows are enough for a verdict; the tenth would cost thirty."""
    assert len(parts_of(of_sizes([1] * 9 + [30, 61])).held_out) == 9


def test_small_units_are_taken_where_larger_ones_would_leave_no_room_for_enough_of_them() -> None:
    for key in range(20):
        held_out = parts_of(of_sizes([4, 4, *[1] * 8]), key=str(key)).held_out
        assert len(held_out) == 8
        assert len(units(held_out)) >= 6


def test_enough_are_held_out_of_those_who_ask_what_was_not_trained_before() -> None:
    trained = [row(f"q{number}.0", unit="user:before") for number in range(40)]
    parts = parts_of(of_sizes([1] * 80), trained=trained)
    assert len(parts.held_out) == 8


def test_large_units_are_held_out_where_there_are_none_but_large_ones() -> None:
    held_out = parts_of(of_sizes([30] * 14), least_rows=8).held_out
    assert len(units(held_out)) == 6


def test_what_others_ask_too_is_left_out_and_counted() -> None:
    rows = [*of_sizes([1] * 60), *(row("q5.0", f"again {i}", unit=f"user:{i}") for i in range(60))]
    parts = parts_of(rows)
    assert b"q5.0" not in b"".join(prompts(parts.held_out))
    assert len(parts.held_out) == parts.left_out >= 8


def test_where_everybody_asks_the_same_everybody_is_learned_from() -> None:
    rows = [row(f"q{number % 3}", f"a{number}", unit=f"user:{number // 3}") for number in range(90)]
    parts = parts_of(rows)
    assert (len(parts.train), parts.held_out, parts.left_out) == (90, (), 0)


def test_whose_answers_are_all_disliked_is_learned_from() -> None:
    """Held out they would judge nothing."""
    dislikes = [row(f"d{i}", liked=False, unit=f"user:d{i}") for i in range(50)]
    likes = [row(f"l{i}", liked=True, unit=f"user:l{i}") for i in range(20)]
    parts = parts_of([*dislikes, *likes])
    assert {each.liked for each in parts.held_out} == {True}
    assert len(parts.held_out) == 8


@pytest.mark.parametrize("count", [0, 1])
def test_of_next_to_nothing_nothing_is_held_out(count: int) -> None:
    parts = parts_of(of_sizes([1] * count))
    assert (len(parts.train), len(parts.held_out)) == (count, 0)


@given(
    st.lists(st.integers(1, 4), min_size=40, max_size=80),
    st.lists(st.integers(1, 4), max_size=40),
    st.integers(0, 99),
)
def test_who_was_held_out_is_so_again_when_rows_come_unless_new_units_are_before_them(
    sizes: list[int], more: list[int], key: int
) -> None:
    rows = of_sizes(sizes)
    before = units(parts_of(rows, key=str(key)).held_out)
    last = max(keyed_hash(str(key), unit) for unit in before)
    new = [
        row(f"n{unit}.{number}", unit=f"new:{unit}")
        for unit, size in enumerate(more)
        for number in range(size)
        if keyed_hash(str(key), f"new:{unit}") > last
    ]
    assert before <= units(parts_of([*rows, *new], key=str(key)).held_out)


# -- the caps ------------------------------------------------------------------------------------------
def most_of(rows: Sequence[Row], of: str) -> int:
    voice = key_of if of == "key" else voice_of
    counts = Counter(voice(each) for each in rows)
    del counts[None]
    return max(counts.values(), default=0)


@given(VOICES, SHARES, SHARES, st.integers(0, 9))
def test_promise_10_no_voice_has_more_than_its_share_or_there_are_too_few_voices_and_it_says_so(
    rows: list[Row], per_key: float, per_user: float, seed: int
) -> None:
    kept, caps = cap_voices(rows, per_key=per_key, per_user=per_user, seed=seed)
    assert len(rows) - len(kept) == sum(cap.dropped for cap in caps)
    assert list(kept) == [each for each in rows if each in kept]
    for cap, share in zip(caps, (per_key, per_user), strict=True):
        nobody = sum(key_of(each) is None for each in kept) if cap.of == "key" else 0
        if cap.applied:
            assert most_of(kept, cap.of) <= share * len(kept) + 1e-9
        else:
            assert share == 1 or not cap.voices or (cap.voices + nobody) * share < 1


@given(VOICES, SHARES, st.integers(0, 9))
def test_promise_10_a_cap_is_applied_wherever_there_are_voices_enough_and_takes_no_more_than_it_must(
    rows: list[Row], share: float, seed: int
) -> None:
    kept, (_, cap) = cap_voices(rows, per_key=1.0, per_user=share, seed=seed)
    sizes = Counter(map(voice_of, rows))
    assert cap.applied is (share < 1 and bool(sizes) and len(sizes) * share >= 1)
    if not cap.applied:
        assert list(kept) == rows
        return
    more = most_of(kept, "user") + 1  # with one more of each the cap would not hold, or there is no more
    left = sum(min(size, more) for size in sizes.values())
    assert left == len(kept) or more > share * left
    for voice, size in sizes.items():
        assert sum(voice_of(each) == voice for each in kept) == min(size, more - 1)


@given(VOICES, SHARES, st.integers(0, 2**32))
def test_promise_10_the_same_rows_in_any_order_are_capped_the_same(
    rows: list[Row], share: float, seed: int
) -> None:
    mixed = random.Random(seed).sample(rows, len(rows))
    one, _ = cap_voices(rows, per_key=share, per_user=0.2, seed=3)
    other, _ = cap_voices(mixed, per_key=share, per_user=0.2, seed=3)
    assert {each.id for each in one} == {each.id for each in other}


def test_promise_10_a_cap_for_keys_takes_from_the_loud_users_of_a_key_and_silences_no_quiet_one() -> None:
    loud = [row(f"{key}{i}", key_id=key, user="ann") for key in ("k1", "k2") for i in range(10)]
    quiet = [row(f"q{i}", key_id="k1", user=f"u{i}") for i in range(8)]
    for seed in range(20):
        kept, (by_key, _) = cap_voices([*loud, *quiet], per_key=0.5, per_user=1.0, seed=seed)
        assert Counter(each.key_id for each in kept) == {"k1": 10, "k2": 10}
        assert by_key.dropped == 8
        assert {f"u{i}" for i in range(8)} < {each.user for each in kept}


def test_rows_of_no_key_are_nobodys_and_are_not_capped() -> None:
    rows = [row(f"q{i}", key_id="k1" if i < 10 else None, user=f"u{i}") for i in range(20)]
    kept, (by_key, _) = cap_voices(rows, per_key=0.25, per_user=1.0, seed=1)
    assert Counter(each.key_id for each in kept) == {None: 10, "k1": 3}
    assert (by_key.voices, by_key.applied, by_key.dropped) == (1, True, 7)


def test_one_user_is_one_voice_in_all_conversations_and_under_all_keys() -> None:
    rows = [row(f"a{i}", user="ann", key_id=f"k{i}", unit=f"conversation:{i}") for i in range(10)]
    rows += [row(f"b{i}", user=f"u{i}") for i in range(8)]
    kept, _ = cap_voices(rows, per_key=1.0, per_user=0.2, seed=1)
    assert sum(each.user == "ann" for each in kept) == 2


def test_other_seeds_keep_other_rows_of_a_loud_voice() -> None:
    rows = [row(f"q{i}", user="ann" if i < 50 else f"u{i}") for i in range(60)]
    kept = {
        frozenset(each.id for each in cap_voices(rows, per_key=1, per_user=0.2, seed=seed)[0])
        for seed in (1, 2)
    }
    assert len(kept) == 2
