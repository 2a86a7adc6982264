"""What an import needs beside the files: the base model, the largest rank; and how a removal ends without a gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.artifacts import ArtifactStore
from adapters.database import Database
from adapters.engine_settings import EngineSettings
from adapters.errors import Conflict, InvalidRequest, PreflightError
from adapters.placements import Placements, PlacementState
from adapters.registry import Registry
from adapters.settings import Settings
from adapters.versions import VersionState
from gateway.imports import GATEWAY_SILENT_SECONDS, advance_removal, choose_base, import_adapter, largest_rank
from tests.lora import TINY_CONFIG, write_lora
from tests.migrated import migrated


def vllm(name: str, model: str, max_lora_rank: int = 64) -> EngineSettings:
    return EngineSettings.model_validate(
        {
            "name": name,
            "kind": "vllm",
            "url": f"http://{name}:8000",
            "model": model,
            "max_lora_rank": max_lora_rank,
        }
    )


CLOUD = EngineSettings.model_validate(
    {"name": "cloud", "kind": "openai", "url": "https://cloud", "models": ["big"]}
)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = migrated(tmp_path / "burnish.db")
    yield database
    database.close()


@pytest.fixture
def registry(db: Database, tmp_path: Path) -> Registry:
    return Registry(db, ArtifactStore(tmp_path / "artifacts"))


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return write_lora(tmp_path / "lora", TINY_CONFIG)


def settings(tmp_path: Path, *engines: EngineSettings) -> Settings:
    return Settings(home=tmp_path, engines=engines)


def test_the_only_base_model_with_adapters_is_taken_when_none_is_named(
    registry: Registry, tmp_path: Path
) -> None:
    assert choose_base(registry, settings(tmp_path, vllm("a", "small"), CLOUD), "support", None) == "small"


def test_several_base_models_must_be_told_apart(registry: Registry, tmp_path: Path) -> None:
    two = settings(tmp_path, vllm("a", "small"), vllm("b", "medium"), CLOUD)
    with pytest.raises(InvalidRequest, match=r"small, medium$") as refused:
        choose_base(registry, two, "support", None)
    assert (refused.value.param, refused.value.code) == ("base_model", "base_model_required")
    assert choose_base(registry, two, "support", "medium") == "medium"


def test_a_second_version_is_for_the_base_model_of_the_first(
    registry: Registry, tmp_path: Path, lora: Path
) -> None:
    two = settings(tmp_path, vllm("a", "small"), vllm("b", "medium"))
    import_adapter(registry, two, "support", lora, "medium", "test")
    assert choose_base(registry, two, "support", None) == "medium"


def test_a_model_of_an_engine_without_adapters_is_refused(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"'big'; it can be small$"):
        choose_base(registry, settings(tmp_path, vllm("a", "small"), CLOUD), "support", "big")
    with pytest.raises(InvalidRequest, match="no engine takes adapters"):
        choose_base(registry, settings(tmp_path, CLOUD), "support", None)


def test_the_rank_is_bounded_by_the_smallest_engine_of_the_base_model(
    registry: Registry, tmp_path: Path
) -> None:
    three = settings(
        tmp_path, vllm("a", "small", 32), vllm("b", "small", 8), vllm("c", "medium", 1), vllm("d", "large")
    )
    assert [largest_rank(three, model) for model in ("small", "medium", "large")] == [8, 1, 64]
    rank_16 = write_lora(tmp_path / "rank-16", TINY_CONFIG, rank=16)
    with pytest.raises(PreflightError, match="16"):
        import_adapter(registry, three, "support", rank_16, "small", "test")
    assert import_adapter(registry, three, "support", rank_16, "large", "test").rank == 16


def test_the_first_import_may_come_before_the_first_serve(
    registry: Registry, tmp_path: Path, lora: Path
) -> None:
    version = import_adapter(registry, settings(tmp_path, vllm("a", "small")), "support", lora, None, "test")
    assert (version.ref, version.state, version.base_model) == ("support@1", VersionState.STAGED, "small")
    assert [base.name for base in registry.base_models()] == ["small"]


def test_an_adapter_is_held_against_the_config_of_the_weights_at_hand(
    registry: Registry, tmp_path: Path, lora: Path
) -> None:
    weights = tmp_path / "own"
    weights.mkdir()
    (weights / "config.json").write_text(json.dumps({**TINY_CONFIG, "num_hidden_layers": 1}))
    own = EngineSettings(name="local", kind="supervised", model="own", weights=weights)
    with pytest.raises(PreflightError, match="1 layers"):
        import_adapter(registry, settings(tmp_path, own), "support", lora, None, "test")


def test_weights_that_changed_take_no_more_adapters(registry: Registry, tmp_path: Path, lora: Path) -> None:
    weights = tmp_path / "own"
    weights.mkdir()
    (weights / "config.json").write_text(json.dumps(TINY_CONFIG))
    own = settings(tmp_path, EngineSettings(name="local", kind="supervised", model="own", weights=weights))
    import_adapter(registry, own, "support", lora, None, "test")
    (weights / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(Conflict, match="changed"):
        import_adapter(registry, own, "support", lora, None, "test")


def test_a_removal_ends_at_once_only_where_no_gateway_is_alive(
    registry: Registry, db: Database, tmp_path: Path, lora: Path
) -> None:
    placements = Placements(db)
    one = settings(tmp_path, vllm("a", "small"))
    for seed, name in enumerate(("first", "second")):
        folder = write_lora(tmp_path / name, TINY_CONFIG, seed=seed)
        import_adapter(registry, one, "support", folder, None, "test")
    registry.begin_remove("support@2", "test")
    placements.put("a", "support@2", PlacementState.PROVED)
    placements.heartbeat("gateway-1", "http://127.0.0.1:8000")
    assert advance_removal(registry, placements, "support@2").state is VersionState.REMOVING

    placements.heartbeat("gateway-1", "http://127.0.0.1:8000", now=1000.0 - GATEWAY_SILENT_SECONDS)
    removed = advance_removal(registry, placements, "support@2")
    assert removed.state is VersionState.REMOVED
    assert not registry.artifacts.exists(removed.digest)
    assert placements.list() == ()
    assert advance_removal(registry, placements, "support@1").state is VersionState.STAGED
