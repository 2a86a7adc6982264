"""The names on /metrics/engines: engines' own words for models and cores become ours."""

from __future__ import annotations

import pytest

from adapters.engine_settings import EngineSettings
from adapters.versions import served_name
from gateway.metrics.engine_page import public_name, relabelling

SETTINGS = EngineSettings(
    name="e0", kind="vllm", model="llama", url="http://127.0.0.1:9", upstream_model="meta/llama-3"
)


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("meta/llama-3", "llama"),
        (served_name("support", 3, f"sha256:{'1f0c' * 16}"), "support@3"),
        (served_name("a.b-c_d", 12, f"sha256:{'0' * 64}"), "a.b-c_d@12"),
        ("support@3", "support@3"),
        ("somebody-elses", "somebody-elses"),
        ("", ""),
    ],
)
def test_a_model_has_the_name_that_clients_know_it_by(name: str, public: str) -> None:
    assert public_name(SETTINGS, name) == public


def test_a_label_that_is_called_as_ours_is_exported() -> None:
    labels = {"engine": "0", "model_name": "meta/llama-3", "le": "0.1", "finished_reason": "stop"}
    assert list(relabelling(SETTINGS)(labels).items()) == [
        ("engine", "e0"),
        ("exported_engine", "0"),
        ("model_name", "llama"),
        ("le", "0.1"),
        ("finished_reason", "stop"),
    ]


def test_only_labels_of_models_are_renamed() -> None:
    assert relabelling(SETTINGS)({"handler": "meta/llama-3"}) == {"engine": "e0", "handler": "meta/llama-3"}
