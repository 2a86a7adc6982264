"""The held-out loss: a mean over rows, whatever batches they come in. In two processes: test_together.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.objectives import _Planned


class Loop:
    """transformers' part: it asks for each batch, and makes a mean of its own."""

    def evaluation_loop(self, batches: list[dict[str, Any]]) -> Any:
        for batch in batches:
            self.prediction_step(None, batch, True)
        return SimpleNamespace(metrics={"eval_loss": 0.0, "eval_runtime": 1.0})

    def prediction_step(self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool) -> Any:
        return inputs["loss"], None, None


class Planned(_Planned, Loop):
    pass


def batch(rows: int, loss: float) -> dict[str, Any]:
    return {"input_ids": torch.zeros(rows, 5), "loss": torch.tensor(loss)}


def test_every_row_counts_as_much_and_every_evaluation_begins_anew() -> None:
    planned = Planned()
    for _ in range(2):
        metrics = planned.evaluation_loop([batch(2, 3.0), batch(2, 5.0), batch(1, 9.0)]).metrics
        assert metrics == {"eval_loss": pytest.approx((2 * 3 + 2 * 5 + 9) / 5), "eval_runtime": 1.0}
