"""What a run says while it trains, and how it obeys."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from adapters.errors import StaleWorker
from adapters.jobs import Wish
from trainer import progress
from trainer.progress import Cancelled, Paused, Progress, Unwatched, has_stalled, obey

ARGS: Any = None
"""The trainer's arguments, which nothing here looks at."""


class Asked(Unwatched):
    """Answers every question with what it was made with, and keeps what it was told."""

    def __init__(self, wish: Wish | None = None) -> None:
        self.wish = wish
        self.steps: list[dict[str, Any]] = []
        self.checkpoints: list[tuple[int, dict[str, Any]]] = []

    def step(self, metrics: dict[str, Any]) -> Wish | None:
        self.steps.append(metrics)
        return self.wish

    def checkpoint(self, step: int, metrics: dict[str, Any]) -> None:
        self.checkpoints.append((step, metrics))


def following(watch: Unwatched, patience: int = 2) -> Progress:
    return Progress(watch, tokens_a_step=100.0, steps_an_epoch=4, patience=patience)


def at(step: int, *, main_process: bool = True) -> TrainerState:
    return TrainerState(global_step=step, max_steps=12, is_world_process_zero=main_process)


def evaluated(*losses: float) -> list[dict[str, Any]]:
    """A log as the trainer keeps it: steps and evaluations."""
    return [entry for loss in losses for entry in ({"loss": 1.0}, {"eval_loss": loss})]


# -- when it has learned enough --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("losses", "patience", "stalled"),
    [
        ((), 1, False),
        ((3.0,), 1, False),
        ((3.0, 2.0, 1.0), 1, False),
        ((3.0, 2.0, 2.5), 1, True),
        ((3.0, 2.0, 2.5), 2, False),
        ((3.0, 2.0, 2.5, 2.4), 2, True),
        ((3.0, 2.0, 2.0), 1, True),  # as good is not better
        ((3.0, 2.0, 2.5, 1.9, 2.0), 2, False),  # it has got better meanwhile
        ((1.0, 2.0, 3.0), 0, False),  # never
    ],
)
def test_a_run_has_stalled_when_the_last_evaluations_were_no_better(
    losses: tuple[float, ...], patience: int, stalled: bool
) -> None:
    assert has_stalled(evaluated(*losses), patience) is stalled


def test_a_stalled_run_is_told_to_stop_after_its_evaluation_is_saved() -> None:
    state, control = at(9), TrainerControl()
    state.log_history = evaluated(1.0, 2.0, 3.0)
    following(Asked()).on_evaluate(ARGS, state, control)
    assert (control.should_training_stop, control.should_save) == (True, True)


def test_a_run_that_gets_better_goes_on() -> None:
    state, control = at(9), TrainerControl()
    state.log_history = evaluated(3.0, 2.0, 1.0)
    following(Asked()).on_evaluate(ARGS, state, control)
    assert (control.should_training_stop, control.should_save) == (False, True)


# -- what it says ----------------------------------------------------------------------------------
def test_a_step_is_told_in_our_words() -> None:
    watch = Asked()
    said = {"loss": 1.5, "learning_rate": 1e-3, "grad_norm": 0.7, "rewards/accuracies": 0.75, "entropy": 9.0}
    following(watch).on_log(ARGS, at(6), TrainerControl(), logs=said)
    (told,) = watch.steps
    known = {
        "step": 6,
        "total_steps": 12,
        "epoch": 1.5,
        "loss": 1.5,
        "learning_rate": 1e-3,
        "gradient_norm": 0.7,
        "preference_accuracy": 0.75,
    }
    assert {name: told[name] for name in known} == known
    assert {*told} - {*known} == {"tokens_per_second", "memory_bytes", "eta_seconds"}
    assert told["memory_bytes"] > 1_000_000


def test_speed_and_time_left_are_those_of_this_attempt() -> None:
    watch = Asked()
    follow = following(watch)
    follow.on_train_begin(ARGS, at(6), TrainerControl())  # the first six were an earlier attempt's
    follow._began -= 10.0
    follow.on_log(ARGS, at(8), TrainerControl(), logs={"loss": 1.0})
    assert watch.steps[0]["tokens_per_second"] == pytest.approx(20.0, rel=0.01)
    assert watch.steps[0]["eta_seconds"] == pytest.approx(20.0, rel=0.01)


def test_a_validation_is_told_with_the_checkpoint_that_follows_it() -> None:
    watch = Asked()
    follow = following(watch)
    follow.on_log(ARGS, at(4), TrainerControl(), logs={"loss": 1.0})
    follow.on_log(ARGS, at(4), TrainerControl(), logs={"eval_loss": 0.5, "eval_runtime": 3.0})
    follow.on_save(ARGS, at(4), TrainerControl())
    ((step, told),) = watch.checkpoints
    assert (step, told["loss"], told["validation_loss"]) == (4, 1.0, 0.5)


def test_a_validation_is_told_once_and_not_again_with_every_step_after_it() -> None:
    watch = Asked()
    follow = following(watch)
    follow.on_log(ARGS, at(4), TrainerControl(), logs={"loss": 1.0})
    follow.on_log(ARGS, at(4), TrainerControl(), logs={"eval_loss": 0.5, "eval_runtime": 3.0})
    follow.on_log(ARGS, at(5), TrainerControl(), logs={"loss": 0.9})
    assert ["validation_loss" in told for told in watch.steps] == [False, True, False]
    assert watch.steps[1] == {"step": 4, "total_steps": 12, "validation_loss": 0.5}


def test_the_summary_at_the_end_is_no_step() -> None:
    watch = Asked()
    following(watch).on_log(ARGS, at(12), TrainerControl(), logs={"train_loss": 1.0, "train_runtime": 9.0})
    assert watch.steps == []


def test_a_checkpoint_is_due_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    follow, control = following(Asked()), TrainerControl()
    follow.on_step_end(ARGS, at(1), control)
    assert control.should_save is False
    monkeypatch.setattr(progress, "CHECKPOINT_SECONDS", 0.0)
    follow.on_step_end(ARGS, at(2), control)
    assert control.should_save is True
    monkeypatch.setattr(progress, "CHECKPOINT_SECONDS", 60.0)
    follow.on_save(ARGS, at(2), control)
    rested = TrainerControl()
    follow.on_step_end(ARGS, at(3), rested)
    assert rested.should_save is False


def test_of_several_processes_the_first_alone_speaks() -> None:
    watch = Asked(Wish.CANCEL)
    follow = following(watch)
    follow.on_log(ARGS, at(1, main_process=False), TrainerControl(), logs={"loss": 1.0})
    follow.on_prediction_step(ARGS, at(1, main_process=False), TrainerControl())
    follow.on_save(ARGS, at(1, main_process=False), TrainerControl())
    assert (watch.steps, watch.checkpoints) == ([], [])


# -- how it obeys ----------------------------------------------------------------------------------
def test_a_wish_to_pause_is_obeyed_with_a_checkpoint_of_the_very_step() -> None:
    watch, control = Asked(Wish.PAUSE), TrainerControl()
    follow = following(watch)
    follow.on_log(ARGS, at(5), control, logs={"loss": 1.0})
    assert control.should_save is True
    with pytest.raises(Paused):
        follow.on_save(ARGS, at(5), control)
    assert [step for step, _ in watch.checkpoints] == [5]


def test_a_wish_to_pause_during_an_evaluation_waits_for_its_result() -> None:
    watch, state, control = Asked(Wish.PAUSE), at(4), TrainerControl()
    follow = following(watch)
    follow.on_prediction_step(ARGS, state, control)
    state.log_history = evaluated(1.0)
    follow.on_evaluate(ARGS, state, control)
    assert control.should_save is True
    with pytest.raises(Paused):
        follow.on_save(ARGS, state, control)


def test_a_wish_to_cancel_is_obeyed_at_once_and_without_a_checkpoint() -> None:
    watch, control = Asked(Wish.CANCEL), TrainerControl()
    follow = following(watch)
    with pytest.raises(Cancelled):
        follow.on_log(ARGS, at(5), control, logs={"loss": 1.0})
    with pytest.raises(Cancelled):
        follow.on_prediction_step(ARGS, at(5), control)
    assert control.should_save is False
    assert watch.checkpoints == []


def test_promise_08_a_worker_that_has_lost_its_job_ends_the_run_at_once() -> None:
    class Lost(Unwatched):
        def step(self, metrics: dict[str, Any]) -> Wish | None:
            raise StaleWorker("another worker's by now")

    with pytest.raises(StaleWorker):
        following(Lost()).on_log(ARGS, at(5), TrainerControl(), logs={"loss": 1.0})


def test_between_steps_a_wish_ends_the_run() -> None:
    obey(None)
    with pytest.raises(Paused):
        obey(Wish.PAUSE)
    with pytest.raises(Cancelled):
        obey(Wish.CANCEL)
