"""The order in which rows are read, laid down before the first step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidRequest
from trainer.plan import Plan, lay_down


@st.composite
def orders(draw: st.DrawFn) -> dict[str, Any]:
    """Anything that a run may ask for and its rows allow."""
    least_rows, processes = draw(st.sampled_from([1, 2])), draw(st.integers(1, 3))
    lengths = st.lists(st.integers(1, 50), min_size=least_rows * processes, max_size=150)
    return {
        "lengths": draw(lengths),
        "epochs": draw(st.integers(1, 3)),
        "batch_size": draw(st.integers(1, 20)),
        "parts": draw(st.integers(1, 8)),
        "least_rows": least_rows,
        "seed": draw(st.integers(0, 1000)),
        "processes": processes,
    }


def rows_of(plan: Plan, epoch: int) -> list[int]:
    steps = plan.steps[epoch * plan.steps_an_epoch : (epoch + 1) * plan.steps_an_epoch]
    return [row for step in steps for part in step for row in part]


def plan_of(rows: int, **changes: Any) -> Plan:
    values = {"epochs": 2, "batch_size": 4, "parts": 1, "least_rows": 1, "seed": 7, **changes}
    return lay_down(values.pop("lengths", [1] * rows), **values)


@given(orders())
def test_each_row_is_read_once_an_epoch(order: dict[str, Any]) -> None:
    plan = lay_down(**order)
    assert len(plan.steps) == plan.steps_an_epoch * order["epochs"]
    for epoch in range(order["epochs"]):
        assert sorted(rows_of(plan, epoch)) == list(range(len(order["lengths"])))


@given(orders())
def test_no_step_of_an_epoch_is_more_than_a_row_larger_than_another(order: dict[str, Any]) -> None:
    sizes = {sum(map(len, step)) for step in lay_down(**order).steps}
    assert max(sizes) - min(sizes) <= 1


@given(orders())
def test_every_step_has_the_same_number_of_parts_and_no_part_too_few_rows(order: dict[str, Any]) -> None:
    plan = lay_down(**order)
    assert {len(step) for step in plan.steps} == {plan.parts}
    for step in plan.steps:
        sizes = [len(part) for part in step]
        assert min(sizes) >= order["least_rows"]
        assert max(sizes) - min(sizes) <= 1


@given(orders())
def test_processes_read_disjoint_rows_that_add_up(order: dict[str, Any]) -> None:
    plan, processes = lay_down(**order), order["processes"]
    read = [plan.batches(process, processes) for process in range(processes)]
    assert len({len(batches) for batches in read}) == 1  # else one would wait for another for ever
    a_step = plan.parts // processes
    assert a_step * processes == plan.parts
    for number, step in enumerate(plan.steps):
        theirs = [batches[number * a_step : (number + 1) * a_step] for batches in read]
        rows = [row for batches in theirs for batch in batches for row in batch]
        assert sorted(rows) == sorted(row for part in step for row in part)
    assert plan.batches() == [list(part) for step in plan.steps for part in step]


@given(orders())
def test_the_same_seed_gives_the_same_plan(order: dict[str, Any]) -> None:
    assert lay_down(**order) == lay_down(**order)


def test_another_seed_and_another_epoch_have_another_order() -> None:
    plan = plan_of(40)
    assert rows_of(plan, 0) != rows_of(plan, 1)
    assert plan != plan_of(40, seed=8)


def test_more_epochs_change_nothing_of_the_first() -> None:
    few, many = plan_of(30, epochs=1), plan_of(30, epochs=3)
    assert many.steps[: len(few.steps)] == few.steps


@pytest.mark.parametrize(("rows", "steps"), [(3, 1), (5, 1), (6, 2), (14, 4), (96, 24)])
def test_steps_are_of_about_the_batch_size(rows: int, steps: int) -> None:
    assert plan_of(rows).steps_an_epoch == steps


def test_parts_are_fewer_where_rows_are_few_and_more_where_the_processes_would_not_have_as_many_each() -> (
    None
):
    assert plan_of(3, parts=8).parts == 3
    assert plan_of(5, parts=8, least_rows=2).parts == 2
    assert plan_of(40, parts=3, processes=2).parts == 4
    assert plan_of(40, parts=1, processes=2).parts == 2
    assert plan_of(3, parts=3, processes=2).parts == 2


def test_rows_of_like_length_are_read_together_so_that_little_is_padded() -> None:
    lengths = [1 + (37 * row) % 100 for row in range(96)]
    plan = plan_of(96, lengths=lengths, batch_size=8)
    padded = sum(max(lengths[row] for row in part) * len(part) for step in plan.steps for part in step)
    unsorted = plan_of(96, batch_size=8)  # laid down without a look at the lengths
    wasteful = sum(max(lengths[row] for row in part) * len(part) for step in unsorted.steps for part in step)
    needed = 2 * sum(lengths)
    assert padded - needed < (wasteful - needed) / 2


def test_long_rows_come_at_any_time() -> None:
    lengths = list(range(96))
    plan = plan_of(96, lengths=lengths, epochs=1)
    means = [sum(lengths[row] for row in part) / len(part) for step in plan.steps for part in step]
    assert means != sorted(means)


@pytest.mark.parametrize(("rows", "least_rows", "processes"), [(1, 2, 1), (3, 2, 2), (1, 1, 2)])
def test_too_few_rows_for_a_step_are_refused(rows: int, least_rows: int, processes: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_of(rows, least_rows=least_rows, processes=processes)
    assert caught.value.code == "too_few_rows"
    assert f"{rows} of the rows fit" in caught.value.message
