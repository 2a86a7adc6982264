"""TRL's trainers for rows that are token ids already, read in the order that was laid down.

Owns what departs from TRL 1.16 and why: it would render, tokenize and shuffle the rows itself, score prompts that no
loss is taken of, compute the reference's log-probabilities anew in every epoch, expect of several processes that all
read as many pairs, let the held-out loss hang on their number, and, with transformers 5.19, go on from the wrong
weights where a checkpoint holds two adapters. The losses are TRL's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import find_batch_size
from trl import DPOTrainer, KTOTrainer, SFTTrainer

from trainer.plan import Plan

#: The adapter that TRL keeps beside the one in training: what a warm start began with.
REFERENCE_ADAPTER = "ref"

# TRL scores only the answers' positions on devices with Triton and every position elsewhere, because others would
# compile again for each shape. A CPU compiles nothing here, and the head of a small model is a fifth of its work.
trl.trainer.utils._use_triton = lambda device: True


class _Planned:
    """What all three have in common. `plan` is set before training begins."""

    plan: Plan
    model: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    _evaluated: list[tuple[int, float]]
    """Of each batch of the evaluation that is going on: its rows, and its loss."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of this process. Not prepared by accelerate, which would deal them out in another order."""
        args: Any = self.args  # type: ignore[attr-defined]
        return DataLoader(
            self.train_dataset,
            batch_sampler=_Batches(self.plan.batches(args.process_index, args.world_size)),
            collate_fn=self.data_collator,
            pin_memory=args.dataloader_pin_memory,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """All held-out rows, in each process. Dealt out, some would be read twice so that all have as many, and which
        step was the best would hang on the number of processes."""
        args: Any = self.args  # type: ignore[attr-defined]
        return DataLoader(
            self.eval_dataset if eval_dataset is None else eval_dataset,
            batch_size=args.eval_batch_size,
            collate_fn=self.data_collator,
            pin_memory=args.dataloader_pin_memory,
        )

    def evaluation_loop(self, *more: Any, **others: Any) -> Any:
        """Each row counts as much. transformers counts batches, and mends that for loaders that accelerate has prepared."""
        self._evaluated = []
        output = super().evaluation_loop(*more, **others)  # type: ignore[misc]
        rows = sum(size for size, _ in self._evaluated)
        output.metrics["eval_loss"] = sum(size * loss for size, loss in self._evaluated) / rows
        return output

    def prediction_step(self, model: Any, inputs: Any, *more: Any, **others: Any) -> Any:
        loss, logits, labels = super().prediction_step(model, inputs, *more, **others)  # type: ignore[misc]
        self._evaluated.append((find_batch_size(inputs), float(loss)))
        return loss, logits, labels

    def _prepare_dataset(self, dataset: Dataset, *more: Any, **others: Any) -> Dataset:
        return dataset

    def create_model_card(self, *more: Any, **others: Any) -> None:
        """Ours is written at the end, by `trainer.card`."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """transformers loads the adapters of sub-folders, and then not the one beside them."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        if (Path(resume_from_checkpoint) / REFERENCE_ADAPTER).is_dir():
            self.model.load_adapter(resume_from_checkpoint, "default", is_trainable=True)


class _Batches(Sampler[list[int]]):
    def __init__(self, batches: list[list[int]]) -> None:
        self._batches = batches
        self.batch_size = max(map(len, batches))
        self.drop_last = False

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class Supervised(_Planned, SFTTrainer):  # type: ignore[misc]
    """Rows: `input_ids`, `labels`."""


class Pairs(_Planned, DPOTrainer):  # type: ignore[misc]
    """Rows: `prompt_ids`, `chosen_ids`, `rejected_ids`."""

    def __init__(self, *more: Any, **others: Any) -> None:
        super().__init__(*more, **others)
        if self.args.world_size > 1:
            self.accelerator.gather = _Uneven(self.accelerator)

    def keep_reference(self, file: Path, ask: Callable[[], None]) -> None:
        """Computes the reference's log-probabilities of each row once, and keeps them in a file, so that a run that
        goes on after a kill has the same. `ask` is called between batches, and may raise.

        The reference is the model without the adapter in training: the base, or what a warm start began with.
        """
        known = json.loads(file.read_text()) if file.is_file() else {}
        sets = {"train": self.train_dataset, "held_out": self.eval_dataset}
        for name, dataset in sets.items():
            if dataset is not None and len(known.get(name, ())) != len(dataset):
                known[name] = self._reference(dataset, ask)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(known))
        partial.rename(file)
        self.train_dataset = _with_reference(self.train_dataset, known["train"])
        if self.eval_dataset is not None:
            self.eval_dataset = _with_reference(self.eval_dataset, known["held_out"])
        self.precompute_ref_logps = True
        if REFERENCE_ADAPTER in self.model.peft_config:
            self.model.delete_adapter(REFERENCE_ADAPTER)

    def _reference(self, dataset: Dataset, ask: Callable[[], None]) -> list[list[float]]:
        size = self.args.per_device_eval_batch_size
        loader = self.accelerator.prepare(DataLoader(dataset, batch_size=size, collate_fn=self.data_collator))
        found: list[list[float]] = []
        for batch in loader:
            ask()
            with torch.no_grad():
                chosen, rejected = self.compute_ref_log_probs(self.model, batch)
            found += [list(pair) for pair in zip(chosen.tolist(), rejected.tolist(), strict=True)]
        return found


class _Uneven:
    """Gathers from all processes what is of another length in each: TRL gathers the rewards of a part's pairs, and takes
    for granted that every process has as many."""

    def __init__(self, accelerator: Any) -> None:
        self._gather: Callable[[torch.Tensor], torch.Tensor] = accelerator.gather
        self._pad: Callable[[torch.Tensor], torch.Tensor] = accelerator.pad_across_processes

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.ndim:
            return self._gather(tensor)
        lengths = self._gather(torch.tensor(len(tensor), device=tensor.device)).tolist()
        padded = self._gather(self._pad(tensor)).reshape(len(lengths), -1, *tensor.shape[1:])
        return torch.cat([each[:length] for each, length in zip(padded, lengths, strict=True)])


class Labels(_Planned, KTOTrainer):  # type: ignore[misc]
    """Rows: `prompt_ids`, `completion_ids`, `label`."""

    def __init__(self, *more: Any, **others: Any) -> None:
        super().__init__(*more, **others)
        self.data_collator = _Mismatched(self.data_collator)


class _Mismatched:
    """Gives each prompt of a batch the answer of the row before it too: from these TRL estimates how far the model has
    moved (KTO, Ethayarajh et al. 2024, section 4.1), and rotates them the same way, but once for all epochs."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return self._collate(
            [
                {**row, "KL_completion_ids": rows[index - 1]["completion_ids"]}
                for index, row in enumerate(rows)
            ]
        )


def _with_reference(dataset: Dataset, values: Sequence[Sequence[float]]) -> Dataset:
    dataset = dataset.add_column("ref_chosen_logps", [chosen for chosen, _ in values])
    return dataset.add_column("ref_rejected_logps", [rejected for _, rejected in values])
