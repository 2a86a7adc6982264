"""What vLLM is told by the plugin. On a real vLLM: tests/integration/test_real_engine.py."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from gateway import vllm_plugin


class Condition:
    """As vLLM 0.32 has it."""

    def __init__(self, is_reader: bool, context: object, notify_address: str, busy_loop_s: float = 1) -> None:
        self.waits = busy_loop_s


def test_vllm_finds_it() -> None:
    (found,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="burnish")
    assert found.load() is vllm_plugin.register


def test_a_reader_sleeps_at_once_and_it_may_be_told_twice() -> None:
    class Mine(Condition):
        def __init__(
            self, is_reader: bool, context: object, notify_address: str, busy_loop_s: float = 1
        ) -> None:
            self.waits = busy_loop_s

    for _ in range(2):
        vllm_plugin.wait_no_longer(Mine, 0.0)
    assert Mine(True, None, "ipc://x").waits == 0.0
    assert Condition(True, None, "ipc://x").waits == 1  # nobody else's


def test_another_vllm_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Renamed:
        def __init__(self, is_reader: bool, spin_s: float = 1) -> None:
            self.waits = spin_s

    class Bare:
        pass

    for other in (Renamed, Bare):
        vllm_plugin.wait_no_longer(other, 0.0)
    assert Renamed(True).waits == 1
    assert caplog.messages == ["busy_wait_unknown: this vLLM waits in another way; it is left as it is"] * 2


def test_promise_11_a_time_that_is_none_is_said_and_ends_no_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(vllm_plugin.BUSY_WAIT, "never")
    monkeypatch.setitem(sys.modules, "vllm", None)
    vllm_plugin.register()
    assert caplog.messages == [
        "busy_wait_ignored: BURNISH_BUSY_WAIT_SECONDS is 'never', and no number of seconds",
        "lora_unknown: this vLLM multiplies adapters in another way; it is left as it is",
    ]


def test_an_engine_that_is_not_ours_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm_plugin.BUSY_WAIT, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)  # to import it would fail
    vllm_plugin.register()
