from __future__ import annotations

import math
from typing import Any

import pytest

from adapters.errors import InvalidRequest
from adapters.hyperparameters import check_hyperparameters


def test_values_within_their_bounds_are_kept_and_nulls_left_out() -> None:
    given = {"n_epochs": 3.0, "batch_size": "auto", "learning_rate_multiplier": 2, "beta": None, "rank": 8}
    found = check_hyperparameters(given)
    assert found == {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 2.0, "rank": 8}
    assert isinstance(found["n_epochs"], int)
    assert isinstance(found["learning_rate_multiplier"], float)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_epochs", 0),
        ("n_epochs", 51),
        ("n_epochs", 1.5),
        ("n_epochs", True),
        ("n_epochs", "3"),
        ("batch_size", 257),
        ("learning_rate_multiplier", 0),
        ("beta", 2.1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("dropout", -0.1),
        ("rank", []),
    ],
)
def test_a_value_out_of_its_bounds_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_hyperparameters({name: value}, "method.dpo.hyperparameters")
    assert (caught.value.param, caught.value.code) == (f"method.dpo.hyperparameters.{name}", "invalid_value")


def test_an_unknown_name_comes_with_the_nearest_known_one() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'n_epochs'") as caught:
        check_hyperparameters({"epochs": 1})
    assert caught.value.code == "unknown_field"
    with pytest.raises(InvalidRequest, match="must be an object"):
        check_hyperparameters([1])
