"""The recipe of a run: every hyper-parameter with its value, from what was ordered and what there is to learn from.

Owns what "auto" becomes, and what is refused because no engine could serve it. A recipe is JSON and back, and together
with the dataset's and the base's digests it says how to train the same adapter again. Trains nothing.

The `auto` values for few rows on a small model were chosen by experiment: docs/log.md, "Learning on two cores".
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from adapters.engine_settings import EngineSettings
from adapters.errors import InvalidRequest
from adapters.hardware import usable_cores
from adapters.hyperparameters import AUTO, check_hyperparameters
from adapters.modules import TARGET_MODULES
from adapters.settings import Settings

RANK = 16
ROW_TOKENS = 4096
"""Longer rows are left out unless `max_length` says otherwise, however long a context the engine has."""

LEAST_STEPS = 24
"""Few rows are gone through more often, so that there are so many optimizer steps."""

MOST_EPOCHS = 10

#: Parameters of the base model -> learning rate of a LoRA: larger models take smaller steps.
LEARNING_RATES = ((1e9, 1e-3), (4e9, 5e-4), (math.inf, 2e-4))

#: Of that, what each method takes.
METHOD_FACTORS = {"supervised": 1.0, "dpo": 1.0, "kto": 0.2}

TOKENS_AT_ONCE = 8192
"""Of a forward pass, on any device: more are computed in parts, and their gradients added up."""

CHECKPOINTED_TOKENS = 4096
"""From so many tokens at once on, activations are computed again instead of kept."""

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


@dataclass(frozen=True, slots=True)
class Recipe:
    method: str  # "supervised", "dpo" or "kto"
    base_model: str
    base_digest: str | None
    dataset: str  # its digest
    start_from: str | None  # the version whose weights it begins with
    seed: int
    n_epochs: int
    batch_size: int  # rows an optimizer step
    gradient_accumulation: int  # parts in which these are computed
    learning_rate: float
    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    max_length: int
    warmup_ratio: float
    weight_decay: float
    beta: float
    sft_weight: float
    early_stopping_patience: int  # 0: never
    packing: bool
    padding_free: bool
    gradient_checkpointing: bool
    quantization: str | None
    report_to: tuple[str, ...]
    threads: int
    accelerate: dict[str, Any] | None = field(default=None, hash=False)  # of `accelerate launch`, as it is

    @property
    def micro_batch_size(self) -> int:
        """Rows of one forward pass."""
        return max(1, self.batch_size // self.gradient_accumulation)

    @property
    def shown(self) -> dict[str, Any]:
        """What the job tells of it, in the names that hyper-parameters are ordered by."""
        names = ("n_epochs", "batch_size", "learning_rate", "rank", "alpha", "dropout", "max_length")
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        values["learning_rate_multiplier"] = 1.0
        return values if self.method == "supervised" else {**values, "beta": self.beta}

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "target_modules": list(self.target_modules),
            "report_to": list(self.report_to),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        lists = {name: tuple(value[name]) for name in ("target_modules", "report_to")}
        return cls(**{**value, **lists})

    @classmethod
    def resolve(
        cls,
        payload: Mapping[str, Any],
        lengths: Sequence[int],
        engine: EngineSettings,
        *,
        method: str,
        dataset: str = "",
        base_digest: str | None = None,
        parameters: float = 0.0,
        threads: int = 0,
        accelerate: Mapping[str, Any] | None = None,
    ) -> Recipe:
        """`lengths`: the tokens of each training row; `parameters`: of the base model; `accelerate`: what
        `accelerate launch` is configured with, where it is used. Raises InvalidRequest."""
        given = check_hyperparameters(payload.get("hyperparameters") or {})
        _refuse_unservable(given, engine)
        rank = _value(given, "rank", min(RANK, engine.max_lora_rank))
        batch_size = _value(given, "batch_size", _batch_size(len(lengths), method))
        parts = _value(given, "gradient_accumulation", _parts(batch_size, lengths, method))
        if batch_size % parts:
            raise InvalidRequest(
                f"'gradient_accumulation' ({parts}) must divide 'batch_size' ({batch_size}).",
                param="hyperparameters.gradient_accumulation",
                code="invalid_value",
            )
        return cls(
            method=method,
            base_model=payload["base_model"],
            base_digest=base_digest,
            dataset=dataset,
            start_from=payload.get("start_from"),
            seed=payload["seed"],
            n_epochs=_value(given, "n_epochs", _epochs(len(lengths), batch_size)),
            batch_size=batch_size,
            gradient_accumulation=parts,
            learning_rate=_learning_rate(given, parameters, method),
            rank=rank,
            alpha=_value(given, "alpha", 2.0 * rank),
            # TRL compares answers without dropout, and packs rows for the supervised method alone.
            dropout=_value(given, "dropout", 0.0) if method == "supervised" else 0.0,
            target_modules=tuple(_value(given, "target_modules", ",".join(TARGET_MODULES)).split(",")),
            max_length=max_length_of(payload, engine),
            warmup_ratio=_value(given, "warmup_ratio", 0.1),
            weight_decay=_value(given, "weight_decay", 0.0),
            beta=_value(given, "beta", 0.1),
            sft_weight=_value(given, "sft_weight", 1.0),
            early_stopping_patience=_value(given, "early_stopping_patience", 2),
            packing=_value(given, "packing", False) and method == "supervised",
            padding_free=_value(given, "padding_free", False) and method == "supervised",
            gradient_checkpointing=_value(
                given, "gradient_checkpointing", _at_once(batch_size // parts, lengths) > CHECKPOINTED_TOKENS
            ),
            quantization=_quantization(payload.get("quantization")),
            report_to=_trackers(payload.get("report_to") or ()),
            threads=threads or max(1, usable_cores() - 1),
            accelerate=None if accelerate is None else dict(accelerate),
        )


def max_length_of(payload: Mapping[str, Any], engine: EngineSettings) -> int:
    """The tokens that a row may have. Raises InvalidRequest where the engine could not read so many."""
    asked = (payload.get("hyperparameters") or {}).get("max_length", AUTO)
    if asked == AUTO or asked is None:
        return min(engine.max_model_len, ROW_TOKENS)
    if asked > engine.max_model_len:
        raise InvalidRequest(
            f"'max_length' ({asked}) is more than the engine reads (max_model_len = {engine.max_model_len}).",
            param="hyperparameters.max_length",
            code="invalid_value",
        )
    return int(asked)


def engine_of(settings: Settings, model: str) -> EngineSettings:
    """An engine that serves a base model with adapters. Raises InvalidRequest."""
    for engine in settings.engines:
        if engine.takes_adapters and model in engine.served_models:
            return engine
    raise InvalidRequest(
        f"No engine of these settings serves '{model}' with adapters.", param="model", code="model_not_found"
    )


def _value(given: Mapping[str, Any], name: str, auto: Any) -> Any:
    value = given.get(name, AUTO)
    return auto if value == AUTO else value


def _batch_size(rows: int, method: str) -> int:
    """A quarter of the rows, as a power of two, 16 at most. KTO compares the rows of a batch, and needs two."""
    least = 2 if method == "kto" else 1
    return max(least, min(16, 1 << (max(rows // 4, 1).bit_length() - 1)))


def _epochs(rows: int, batch_size: int) -> int:
    steps = math.ceil(rows / batch_size)
    least = 4 if rows <= 200 else 3 if rows <= 1000 else 2 if rows <= 5000 else 1
    return max(least, min(MOST_EPOCHS, math.ceil(LEAST_STEPS / max(steps, 1))))


def _learning_rate(given: Mapping[str, Any], parameters: float, method: str) -> float:
    auto = next(rate for size, rate in LEARNING_RATES if parameters < size) * METHOD_FACTORS[method]
    rate: float = _value(given, "learning_rate", auto * _value(given, "learning_rate_multiplier", 1.0))
    return rate


def _parts(batch_size: int, lengths: Sequence[int], method: str) -> int:
    """The fewest equal parts of a batch of which none reads more than TOKENS_AT_ONCE; else the most that there are."""
    least_rows = 2 if method == "kto" else 1
    equal = [parts for parts in range(1, batch_size // least_rows + 1) if batch_size % parts == 0] or [1]
    return next((n for n in equal if _at_once(batch_size // n, lengths) <= TOKENS_AT_ONCE), equal[-1])


def _at_once(rows: int, lengths: Sequence[int]) -> int:
    return rows * max(lengths, default=0)


def _refuse_unservable(given: Mapping[str, Any], engine: EngineSettings) -> None:
    if given.get("use_dora") is True:
        raise _refused(
            "use_dora", "the engines cannot serve DoRA: vLLM has no code for its magnitude vectors"
        )
    rank = _value(given, "rank", 1)
    if rank > engine.max_lora_rank:
        raise _refused(
            "rank", f"{rank} is more than the engine serves (max_lora_rank = {engine.max_lora_rank})"
        )
    for name in ("packing", "padding_free"):
        if given.get(name) is True and importlib.util.find_spec("flash_attn") is None:
            raise _refused(
                name, "it needs FlashAttention, without which rows in one sequence would see each other"
            )


def _quantization(asked: str | None) -> str | None:
    if asked not in (None, "nf4"):
        raise InvalidRequest(
            f"'quantization' is {asked!r}; it may be 'nf4'.", param="quantization", code="invalid_value"
        )
    return asked


def _trackers(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in TRACKERS:
            raise InvalidRequest(
                f"There is no tracker '{name}'; there are {', '.join(TRACKERS)}.",
                param="report_to",
                code="invalid_value",
            )
        if importlib.util.find_spec(TRACKERS[name]) is None:
            raise InvalidRequest(
                f"The tracker '{name}' is not installed: pip install 'burnish[{name}]'.",
                param="report_to",
                code="tracker_unavailable",
            )
    return tuple(names)


def _refused(name: str, why: str) -> InvalidRequest:
    where = f"hyperparameters.{name}"
    return InvalidRequest(f"'{where}': {why}.", param=where, code="not_servable")
