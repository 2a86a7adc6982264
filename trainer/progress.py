"""What a run says while it trains, and what it is told: the seam between the training loop and whoever watches it.

Owns the numbers of a step (loss, learning rate, tokens a second, memory, time left) and how a wish to pause or to
cancel is obeyed within one optimizer step. Knows neither jobs' records nor the database: a `Watch` does. Speed and time
left are those by the clock, rests included (`pace`).
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adapters.jobs import Wish
from trainer import memory

#: A killed run repeats at most so much work.
CHECKPOINT_SECONDS = 60.0

#: The trainers' names of a step's numbers, and ours.
STEP_METRICS = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "gradient_norm",
    "mean_token_accuracy": "token_accuracy",
    "rewards/accuracies": "preference_accuracy",
    "rewards/margins": "reward_margin",
}
VALIDATION_METRICS = {
    "eval_loss": "validation_loss",
    "eval_mean_token_accuracy": "validation_token_accuracy",
    "eval_rewards/accuracies": "validation_preference_accuracy",
}


class Paused(Exception):
    """The run has saved a checkpoint and stopped: it goes on from there."""


class Cancelled(Exception):
    """The run has stopped for good, without a checkpoint."""


def obey(wish: Wish | None) -> None:
    """Between steps, where nothing is lost by stopping. Raises Cancelled, Paused."""
    if wish is Wish.CANCEL:
        raise Cancelled
    if wish is Wish.PAUSE:
        raise Paused


class Watch(Protocol):
    """Whoever follows a run. Its methods may raise (StaleWorker): the run then ends at once."""

    def step(self, metrics: dict[str, Any]) -> Wish | None:
        """After each optimizer step with its numbers, and in between with none; returns what is wished."""

    def checkpoint(self, step: int, metrics: dict[str, Any]) -> None:
        """After a checkpoint is on disk."""

    def note(self, message: str) -> None:
        """Something that a person should know: a warning, never a failure."""

    def headroom(self) -> float | None:
        """How far interactive latency is from its target: 1 - the worst of the latencies over their targets. None:
        nobody says."""

    def lines_wait(self) -> bool:
        """Whether batch lines wait for a place: they go before training."""


class Unwatched:
    """Nobody follows."""

    def step(self, metrics: dict[str, Any]) -> Wish | None:
        return None

    def checkpoint(self, step: int, metrics: dict[str, Any]) -> None:
        pass

    def note(self, message: str) -> None:
        pass

    def headroom(self) -> float | None:
        return None

    def lines_wait(self) -> bool:
        return False


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Tells a watch of every step and checkpoint, and does what it wishes.

    `tokens_a_step`: on average. Only the main process of several asks the watch; the others hear its answer, so that
    all stop at the same step.
    """

    def __init__(self, watch: Watch, tokens_a_step: float, steps_an_epoch: int, patience: int) -> None:
        self._watch = watch
        self._tokens_a_step = tokens_a_step
        self._steps_an_epoch = steps_an_epoch
        self._patience = patience
        self._pausing = False
        self._latest: dict[str, Any] = {}
        self._began = self._saved = time.monotonic()
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._began = self._saved = time.monotonic()
        self._first_step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        if agreed(time.monotonic() - self._saved > CHECKPOINT_SECONDS):
            control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **more: Any,
    ) -> None:
        """The trainer logs after every step, before it evaluates and saves."""
        validation = {ours: float(logs[name]) for name, ours in VALIDATION_METRICS.items() if name in logs}
        if "loss" in logs:
            self._latest = told = self._numbers(state, logs)
        elif validation:
            self._latest |= validation
            told = {"step": state.global_step, "total_steps": state.max_steps, **validation}
        else:
            return
        if self._ask(state, told) is Wish.PAUSE:
            self._pausing = control.should_save = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """During an evaluation: a wish to pause waits until it is over, since its result decides what is kept."""
        if self._ask(state, {}) is Wish.PAUSE:
            self._pausing = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        control.should_save = True
        if has_stalled(state.log_history, self._patience):
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._saved = time.monotonic()
        if state.is_world_process_zero:
            self._watch.checkpoint(state.global_step, dict(self._latest))
        if self._pausing:
            raise Paused

    def _ask(self, state: TrainerState, metrics: dict[str, Any]) -> Wish | None:
        wish: Wish | None = agreed(self._watch.step(dict(metrics)) if state.is_world_process_zero else None)
        if wish is Wish.CANCEL:
            raise Cancelled
        return wish

    def _numbers(self, state: TrainerState, logs: dict[str, Any]) -> dict[str, Any]:
        seconds = max(time.monotonic() - self._began, 1e-9)
        steps = state.global_step - self._first_step
        return {
            "step": state.global_step,
            "total_steps": state.max_steps,
            "epoch": round(state.global_step / self._steps_an_epoch, 3),
            **{ours: float(logs[name]) for name, ours in STEP_METRICS.items() if name in logs},
            "tokens_per_second": round(self._tokens_a_step * steps / seconds, 1),
            "memory_bytes": memory.own_bytes(),
            "eta_seconds": round((state.max_steps - state.global_step) * seconds / max(steps, 1), 1),
        }


def has_stalled(log_history: list[dict[str, Any]], patience: int) -> bool:
    """Whether the validation loss has not got better for `patience` evaluations (0: never). Told from the log alone,
    which a checkpoint holds, so that a run that goes on after a kill stops where it would have stopped."""
    losses = [entry["eval_loss"] for entry in log_history if "eval_loss" in entry]
    return bool(patience and losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


def agreed(answer: Any) -> Any:
    """The main process's answer, in every process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return answer
    box = [answer]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
