"""What an engine of ours does otherwise than vLLM 0.32 by itself. vLLM loads it in each of its processes, by the entry point
`vllm.general_plugins` of pyproject.toml; here alone vLLM is imported, and of Burnish only `vllm_lora`.

Owns how long vLLM's processes wait for each other actively. Between two steps a reader asks its queue again and again for a
second (vllm-project/vllm#52814 would make that a setting), so while anybody is answered the scheduler takes a whole core to
wait for the worker. Beside a GPU that core has nothing else to do; on a CPU it is one that a run would train on. A reader that
sleeps is woken by a message which now and then is lost, and vLLM has it look for itself after five seconds (vllm-project/vllm#45224):
ours looks sooner. And on a CPU the plugin puts `vllm_lora` in the place of vLLM's own LoRA.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from typing import Any

from gateway import vllm_lora

BUSY_WAIT = "BURNISH_BUSY_WAIT_SECONDS"
"""How long a reader asks before it sleeps until it is told; in the environment of the engine. Without it: as vLLM has it."""

RECHECK_MS = 5
"""How long a reader that sleeps trusts that it will be told. A step of one stream takes 80 ms on two cores."""

ATTENTIVE_SECONDS = 10.0
"""How long after the last message it looks so often; an engine that nobody asks sleeps as vLLM has it."""

log = logging.getLogger("burnish.vllm_plugin")


def register() -> None:
    wait_as_told()
    multiply_by_adapter()


def wait_as_told() -> None:
    given = os.environ.get(BUSY_WAIT)
    if given is None:
        return
    try:
        seconds = float(given)
    except ValueError:
        log.warning("busy_wait_ignored: %s is %r, and no number of seconds", BUSY_WAIT, given)
        return
    from vllm.distributed.device_communicators import shm_broadcast

    wait_no_longer(shm_broadcast.SpinCondition, seconds)


def multiply_by_adapter() -> None:
    """On a CPU; elsewhere vLLM's kernels do as much by themselves."""
    try:
        from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
        from vllm.platforms import current_platform
    except ImportError:
        is_known = False
    else:
        is_known = not current_platform.is_cpu() or vllm_lora.replace(PunicaWrapperCPU)
    if not is_known:
        log.warning("lora_unknown: this vLLM multiplies adapters in another way; it is left as it is")


def wait_no_longer(condition: Any, seconds: float) -> None:
    """Gives every reader that is made from now on such a time, and has it look again while messages come. It may be told
    several times, as vLLM loads plugins."""
    made = condition.__init__
    try:
        *before, _ = made.__defaults__
        (*_, last) = made.__code__.co_varnames[: made.__code__.co_argcount]
        (_, timeout) = condition.wait.__code__.co_varnames[: condition.wait.__code__.co_argcount]
    except (AttributeError, TypeError, ValueError):
        last, timeout, before = None, None, []
    if (last, timeout) != ("busy_loop_s", "timeout_ms"):
        log.warning("busy_wait_unknown: this vLLM waits in another way; it is left as it is")
        return
    made.__defaults__ = (*before, seconds)
    if not hasattr(condition.wait, "__wrapped__"):
        condition.wait = _looking_again(condition.wait)


def _looking_again(wait: Any) -> Any:
    @functools.wraps(wait)
    def looks_again(self: Any, timeout_ms: int | None = None) -> None:
        if time.monotonic() < self.last_read + ATTENTIVE_SECONDS:
            timeout_ms = RECHECK_MS if timeout_ms is None else min(timeout_ms, RECHECK_MS)
        wait(self, timeout_ms)

    return looks_again
