"""From an order and the rows to every number of a run, or to the reason why no engine could serve what comes of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.engine_settings import EngineSettings
from adapters.errors import InvalidRequest
from adapters.hyperparameters import TARGET_MODULES
from adapters.settings import Settings
from trainer.recipe import TOKENS_AT_ONCE, Recipe, engine_of, max_length_of

METHODS = ("supervised", "dpo", "kto")


def engine(**changes: Any) -> EngineSettings:
    return EngineSettings.model_validate({"name": "local", "kind": "supervised", **changes})


def resolve(
    hyperparameters: dict[str, Any] | None = None,
    *,
    lengths: Sequence[int] = (100,) * 96,
    method: str = "supervised",
    serving: EngineSettings | None = None,
    parameters: float = 135e6,
    accelerate: dict[str, Any] | None = None,
    **payload: Any,
) -> Recipe:
    order = {"base_model": "smollm2", "seed": 7, "hyperparameters": hyperparameters or {}, **payload}
    return Recipe.resolve(
        order,
        lengths,
        serving or engine(),
        method=method,
        dataset="sha256:d",
        base_digest="sha256:b",
        parameters=parameters,
        threads=1,
        accelerate=accelerate,
    )


def refused(*given: Any, **more: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        resolve(*given, **more)
    return caught.value


# -- what "auto" becomes ---------------------------------------------------------------------------
@pytest.mark.parametrize(("rows", "batch", "epochs"), [(2, 1, 10), (8, 2, 6), (20, 4, 5), (96, 16, 4)])
def test_few_rows_are_learned_in_small_batches_and_more_often(rows: int, batch: int, epochs: int) -> None:
    recipe = resolve(lengths=[10] * rows)
    assert (recipe.batch_size, recipe.n_epochs) == (batch, epochs)


@pytest.mark.parametrize(("rows", "epochs"), [(200, 4), (1000, 3), (5000, 2), (5001, 1)])
def test_many_rows_are_gone_through_less_often(rows: int, epochs: int) -> None:
    recipe = resolve(lengths=[10] * rows)
    assert (recipe.batch_size, recipe.n_epochs) == (16, epochs)


@pytest.mark.parametrize(("parameters", "rate"), [(135e6, 1e-3), (1.7e9, 5e-4), (7e9, 2e-4)])
def test_larger_models_take_smaller_steps(parameters: float, rate: float) -> None:
    assert resolve(parameters=parameters).learning_rate == rate
    assert resolve({"learning_rate_multiplier": 0.5}, parameters=parameters).learning_rate == rate / 2
    assert resolve({"learning_rate_multiplier": 0.5, "learning_rate": 3e-5}).learning_rate == 3e-5


def test_kto_takes_smaller_steps_and_at_least_two_rows() -> None:
    assert resolve(method="kto").learning_rate == pytest.approx(2e-4)
    assert resolve(method="kto", lengths=[10] * 3).batch_size == 2


def test_the_rank_is_what_the_engine_serves_at_most_and_alpha_twice_the_rank() -> None:
    assert (resolve().rank, resolve().alpha) == (16, 32.0)
    small = resolve(serving=engine(max_lora_rank=8))
    assert (small.rank, small.alpha) == (8, 16.0)
    asked = resolve({"rank": 4, "alpha": 4.0})
    assert (asked.rank, asked.alpha) == (4, 4.0)


def test_all_linear_layers_are_changed_unless_some_are_named() -> None:
    assert resolve().target_modules == TARGET_MODULES
    assert resolve({"target_modules": "v_proj, q_proj"}).target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("longest", "parts", "checkpointing"), [(100, 1, False), (400, 1, True), (1000, 2, True), (4000, 8, True)]
)
def test_long_rows_are_computed_in_parts_and_their_activations_again(
    longest: int, parts: int, checkpointing: bool
) -> None:
    recipe = resolve(lengths=[longest, *[10] * 95])
    assert (recipe.batch_size, recipe.gradient_accumulation) == (16, parts)
    assert recipe.gradient_checkpointing is checkpointing


@given(
    batch=st.integers(1, 64),
    longest=st.integers(1, 20_000),
    rows=st.integers(1, 200),
    method=st.sampled_from(METHODS),
)
def test_the_parts_of_any_batch_are_equal_and_fit_where_equal_parts_can(
    batch: int, longest: int, rows: int, method: str
) -> None:
    recipe = resolve({"batch_size": batch}, lengths=[longest] * rows, method=method)
    parts, least = recipe.gradient_accumulation, 2 if method == "kto" else 1
    assert batch % parts == 0
    assert recipe.micro_batch_size == batch // parts
    assert recipe.micro_batch_size >= min(least, batch)
    finer = [n for n in range(parts + 1, batch + 1) if batch % n == 0 and batch // n >= least]
    assert recipe.micro_batch_size * longest <= TOKENS_AT_ONCE or not finer


def test_a_row_may_be_as_long_as_the_engine_reads_but_not_longer_than_is_sensible() -> None:
    assert resolve(serving=engine(max_model_len=2048)).max_length == 2048
    assert resolve(serving=engine(max_model_len=131072)).max_length == 4096
    assert resolve({"max_length": 8192}, serving=engine(max_model_len=131072)).max_length == 8192
    assert max_length_of({"hyperparameters": {"max_length": "auto"}}, engine(max_model_len=512)) == 512
    assert max_length_of({}, engine(max_model_len=512)) == 512


def test_a_value_that_is_auto_is_as_one_that_is_not_there() -> None:
    names = ("n_epochs", "batch_size", "learning_rate", "rank", "alpha", "dropout", "packing", "max_length")
    assert resolve(dict.fromkeys(names, "auto")) == resolve()


def test_what_is_asked_for_is_taken() -> None:
    asked = {
        "n_epochs": 2,
        "batch_size": 6,
        "gradient_accumulation": 3,
        "dropout": 0.1,
        "warmup_ratio": 0.2,
        "weight_decay": 0.01,
        "early_stopping_patience": 0,
        "gradient_checkpointing": True,
        "beta": 0.3,
        "sft_weight": 0.0,
    }
    recipe = resolve(asked, quantization="nf4", report_to=["tensorboard"], start_from="support@1")
    assert {name: getattr(recipe, name) for name in asked} == asked
    assert (recipe.quantization, recipe.report_to, recipe.start_from) == (
        "nf4",
        ("tensorboard",),
        "support@1",
    )
    assert (recipe.seed, recipe.base_digest, recipe.dataset) == (7, "sha256:b", "sha256:d")


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_what_a_method_does_not_do_is_not_in_its_recipe(method: str, flash_attention: None) -> None:
    """TRL compares answers without dropout, and only rows of one answer can be packed."""
    asked = {"dropout": 0.1, "packing": True, "padding_free": True}
    recipe = resolve(asked, method=method)
    assert (recipe.dropout, recipe.packing, recipe.padding_free) == (0.0, False, False)


# -- what is refused -------------------------------------------------------------------------------
@pytest.fixture
def flash_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)


def test_dora_is_refused_because_no_engine_serves_it() -> None:
    error = refused({"use_dora": True})
    assert (error.code, error.param) == ("not_servable", "hyperparameters.use_dora")
    assert "vLLM" in error.message
    assert resolve({"use_dora": False}) == resolve()


def test_a_rank_above_the_engines_is_refused() -> None:
    error = refused({"rank": 32}, serving=engine(max_lora_rank=16))
    assert (error.code, error.param) == ("not_servable", "hyperparameters.rank")
    assert "max_lora_rank = 16" in error.message
    assert resolve({"rank": 32}, serving=engine(max_lora_rank=32)).rank == 32


@pytest.mark.parametrize("name", ["packing", "padding_free"])
def test_packing_without_flash_attention_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    error = refused({name: True})
    assert (error.code, error.param) == ("not_servable", f"hyperparameters.{name}")
    assert "see each other" in error.message


def test_packing_with_flash_attention_is_taken(flash_attention: None) -> None:
    recipe = resolve({"packing": True, "padding_free": True})
    assert (recipe.packing, recipe.padding_free) == (True, True)


def test_parts_that_do_not_divide_the_batch_are_refused() -> None:
    error = refused({"batch_size": 8, "gradient_accumulation": 3})
    assert error.param == "hyperparameters.gradient_accumulation"
    assert "must divide 'batch_size' (8)" in error.message


def test_rows_longer_than_the_engine_reads_are_refused() -> None:
    error = refused({"max_length": 4097}, serving=engine(max_model_len=4096))
    assert error.param == "hyperparameters.max_length"
    assert "max_model_len = 4096" in error.message


def test_a_tracker_that_is_not_installed_is_refused_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    error = refused(report_to=["tensorboard", "wandb"])
    assert (error.code, error.param) == ("tracker_unavailable", "report_to")
    assert "pip install 'burnish[wandb]'" in error.message


def test_an_unknown_tracker_is_refused_with_those_that_there_are() -> None:
    assert "there are tensorboard, wandb, mlflow" in refused(report_to=["comet"]).message


def test_another_quantization_than_nf4_is_refused() -> None:
    error = refused(quantization="int3")
    assert (error.param, error.code) == ("quantization", "invalid_value")


@pytest.mark.parametrize(
    ("name", "value"), [("n_epochs", 0), ("batch_size", 257), ("learning_rate", 0), ("dropout", 1.0)]
)
def test_values_out_of_bounds_are_refused(name: str, value: float) -> None:
    assert refused({name: value}).param == f"hyperparameters.{name}"


def test_a_misspelled_name_is_refused_with_the_nearest_right_one() -> None:
    assert "did you mean 'learning_rate'?" in refused({"learing_rate": 1e-4}).message


# -- as JSON ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accelerate", [None, {"num_processes": 2, "fsdp_config": {"fsdp_version": 2}}])
def test_a_recipe_is_json_and_back(method: str, accelerate: dict[str, Any] | None) -> None:
    recipe = resolve(
        {"target_modules": "q_proj"}, method=method, accelerate=accelerate, report_to=["tensorboard"]
    )
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_what_the_job_shows_can_be_ordered_again() -> None:
    for method in METHODS:
        recipe = resolve({"batch_size": 6}, method=method)
        assert ("beta" in recipe.shown) is (method != "supervised")
        assert resolve(recipe.shown, method=method) == recipe


# -- whose engine ----------------------------------------------------------------------------------
def test_the_engine_is_one_that_serves_the_model_with_adapters() -> None:
    cloud = {"name": "cloud", "kind": "openai", "url": "https://example.com", "models": ["gpt"]}
    local = {"name": "local", "kind": "supervised", "model": "smollm2"}
    settings = Settings.model_validate({"engines": [cloud, local]})
    assert engine_of(settings, "smollm2").name == "local"
    for model in ("gpt", "nowhere"):
        with pytest.raises(InvalidRequest, match=f"'{model}' with adapters") as caught:
            engine_of(settings, model)
        assert caught.value.code == "model_not_found"
