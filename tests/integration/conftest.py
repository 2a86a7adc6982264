"""One route that has learned, for all tests that need a version which is plainly better than another."""

from __future__ import annotations

import pytest

from tests.conftest import RealStack
from tests.integration.learning import Learned, learn


@pytest.fixture(scope="session")
def learned(real_stack: RealStack) -> Learned:
    """The whole loop, once a session (slow: three minutes)."""
    return learn(real_stack)
