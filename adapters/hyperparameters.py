"""The hyper-parameters that a training job may be given: their names, kinds and bounds.

Pure. The first four and their ranges are OpenAI's; a value may always be "auto". What "auto" becomes, `trainer.recipe`
decides.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

from adapters.errors import InvalidRequest
from adapters.modules import TARGET_MODULES

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Bound:
    """A number from `low` to `high`, or above `low` alone where `open` says so."""

    kind: type[int] | type[float]
    low: float
    high: float
    open: bool = False

    def allows(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if self.kind is int and value != int(value):
            return False
        return (self.low < value if self.open else self.low <= value) and value <= self.high

    def made(self, value: Any) -> Any:
        return self.kind(value)

    def __str__(self) -> str:
        kind = "a whole number" if self.kind is int else "a number"
        return f"{kind} {'above' if self.open else 'from'} {self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def allows(self, value: Any) -> bool:
        return isinstance(value, bool)

    def made(self, value: Any) -> Any:
        return value

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True, slots=True)
class Names:
    """Some of a few names, as one text with commas between them, so that a policy can hold it."""

    known: tuple[str, ...]

    def allows(self, value: Any) -> bool:
        return (
            isinstance(value, str)
            and bool(value.strip())
            and set(self.made(value).split(",")) <= {*self.known}
        )

    def made(self, value: Any) -> Any:
        return ",".join(sorted({name.strip() for name in value.split(",")}))

    def __str__(self) -> str:
        return f"a text with some of {', '.join(self.known)}, commas between them"


KNOWN: dict[str, Bound | Flag | Names] = {
    "n_epochs": Bound(int, 1, 50),
    "batch_size": Bound(int, 1, 256),
    "learning_rate_multiplier": Bound(float, 0, 1000, open=True),
    "beta": Bound(float, 0, 2, open=True),  # of DPO and KTO
    "learning_rate": Bound(float, 0, 1, open=True),  # outweighs the multiplier
    "rank": Bound(int, 1, 512),
    "alpha": Bound(float, 0, 4096, open=True),
    "dropout": Bound(float, 0, 0.9),
    "max_length": Bound(int, 16, 1_048_576),  # tokens of one row
    "target_modules": Names(TARGET_MODULES),
    "warmup_ratio": Bound(float, 0, 0.9),  # of all steps
    "weight_decay": Bound(float, 0, 1),
    "sft_weight": Bound(float, 0, 10),  # of the supervised term in DPO
    "early_stopping_patience": Bound(
        int, 0, 50
    ),  # evaluations without a better validation loss; 0: never stops
    "gradient_accumulation": Bound(int, 1, 256),  # the parts in which a batch is computed
    "gradient_checkpointing": Flag(),
    "packing": Flag(),
    "padding_free": Flag(),
    "use_dora": Flag(),
}


def check_hyperparameters(values: Any, where: str = "hyperparameters") -> dict[str, Any]:
    """The values themselves, whole numbers as int; nulls are left out. Raises InvalidRequest naming the key."""
    if not isinstance(values, dict):
        raise InvalidRequest(f"'{where}' must be an object.", param=where, code="invalid_value")
    return {name: _checked(name, value, where) for name, value in values.items() if value is not None}


def _checked(name: str, value: Any, where: str) -> Any:
    bound = KNOWN.get(name)
    if bound is None:
        nearest = difflib.get_close_matches(name, KNOWN, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are {', '.join(KNOWN)}."
        raise InvalidRequest(
            f"There is no hyper-parameter '{name}'; {hint}", param=f"{where}.{name}", code="unknown_field"
        )
    if value == AUTO:
        return AUTO
    if not bound.allows(value):
        raise InvalidRequest(
            f"'{where}.{name}' must be {bound}, or 'auto'.", param=f"{where}.{name}", code="invalid_value"
        )
    return bound.made(value)
