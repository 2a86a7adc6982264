"""What vLLM is told by the plugin. On a real vLLM: tests/integration/test_real_engine.py."""

from __future__ import annotations

import importlib.metadata
import sys
import time

import pytest

from gateway import vllm_plugin


class Condition:
    """As vLLM 0.32 has it."""

    def __init__(self, is_reader: bool, context: object, notify_address: str, busy_loop_s: float = 1) -> None:
        self.waits = busy_loop_s
        self.last_read = time.monotonic()
        self.slept: list[int | None] = []

    def wait(self, timeout_ms: int | None = None) -> None:
        self.slept.append(timeout_ms)


def test_vllm_finds_it() -> None:
    (found,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="burnish")
    assert found.load() is vllm_plugin.register


def told(times: int = 1) -> type[Condition]:
    class Mine(Condition):
        def __init__(
            self, is_reader: bool, context: object, notify_address: str, busy_loop_s: float = 1
        ) -> None:
            super().__init__(is_reader, context, notify_address, busy_loop_s)

        def wait(self, timeout_ms: int | None = None) -> None:
            super().wait(timeout_ms)

    for _ in range(times):
        vllm_plugin.wait_no_longer(Mine, 0.0)
    return Mine


def test_a_reader_sleeps_at_once_and_it_may_be_told_twice() -> None:
    assert told(times=2)(True, None, "ipc://x").waits == 0.0
    assert Condition(True, None, "ipc://x").waits == 1  # nobody else's


def test_a_reader_looks_again_soon_while_messages_come() -> None:
    """What is to wake it may be lost, and vLLM would let it sleep for five seconds."""
    reader = told(times=2)(True, None, "ipc://x")
    for given in (5000, None, 2):
        reader.wait(timeout_ms=given)
    assert reader.slept == [vllm_plugin.RECHECK_MS, vllm_plugin.RECHECK_MS, 2]
    reader.last_read -= vllm_plugin.ATTENTIVE_SECONDS  # nobody asks any more
    for given in (5000, None):
        reader.wait(timeout_ms=given)
    assert reader.slept[3:] == [5000, None]


def test_another_vllm_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Renamed:
        def __init__(self, is_reader: bool, spin_s: float = 1) -> None:
            self.waits = spin_s

    class Bare:
        pass

    class Deaf(Condition):
        def wait(self, seconds: float | None = None) -> None:  # type: ignore[override]
            pass

    for other in (Renamed, Bare, Deaf):
        vllm_plugin.wait_no_longer(other, 0.0)
    assert Renamed(True).waits == Deaf(True, None, "ipc://x").waits == 1
    assert caplog.messages == ["busy_wait_unknown: this vLLM waits in another way; it is left as it is"] * 3


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
