"""A fake engine for each module of tests, as new for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL


@pytest.fixture(scope="module")
def module_engine() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as fake:
        yield fake


@pytest.fixture
def engine(module_engine: FakeEngine) -> FakeEngine:
    module_engine.reset()
    return module_engine
