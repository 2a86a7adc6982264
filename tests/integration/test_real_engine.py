"""What only a real vLLM shows: real adapters, real log-probabilities, real swaps, seen by the official SDK."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from safetensors.numpy import load_file, save_file

from adapters.hardware import has_bfloat16_units
from gateway import vllm_plugin
from gateway.vllm_command import serves_on_gpu
from tests.conftest import ALL_LINEAR, MODEL, RealStack, wait_for
from tests.lora import write_lora
from trainer.memory import descendants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LOST_SECONDS = 2.5
"""Half of what a reader of vLLM's sleeps before it looks whether there was a message."""

ROUNDING = 0.3 if has_bfloat16_units() else 0.1
"""Nats. A logit between 16 and 32 is rounded to an eighth in bfloat16, so that one step of it moves two tokens apart by so
much, and all others by the sum's share of it; what is computed beside others is added up in another order."""

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


def greedy(stack: RealStack, model: str, max_tokens: int = 12) -> str:
    answer = stack.client().chat.completions.create(
        model=model, messages=QUESTION, max_tokens=max_tokens, temperature=0
    )
    assert answer.model == model
    return answer.choices[0].message.content or ""


def smollm2(stack: RealStack) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((stack.server.home / "weights" / MODEL / "config.json").read_text())
    return config


def test_the_base_model_knows_the_capital_of_france(real_stack: RealStack) -> None:
    # As raw text: in a chat its first word is a toss-up, which another processor's rounding decides otherwise.
    answer = real_stack.client().completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=2, temperature=0
    )
    assert answer.choices[0].text.startswith(" Paris")


def test_two_adapters_answer_otherwise_than_the_base_and_than_each_other(real_stack: RealStack) -> None:
    answers = {name: greedy(real_stack, name) for name in (MODEL, *real_stack.adapter_names)}
    assert len(set(answers.values())) == 3, answers
    for name in real_stack.adapter_names:
        assert greedy(real_stack, f"{name}@1") == answers[name]


def test_promise_06_who_asks_beside_others_gets_the_answer_that_they_get_alone(real_stack: RealStack) -> None:
    """Also the base model's, once each of the engine's slots has an adapter in it (vllm-project/vllm#48421)."""
    names = (*real_stack.adapter_names, "third", "fourth")  # as many as there are slots
    for seed, name in enumerate(names[2:], 3):
        lora = write_lora(
            real_stack.server.home / "sources" / name,
            smollm2(real_stack), seed=seed, rank=16, scale=0.08, target_modules=ALL_LINEAR,
        )  # fmt: skip
        real_stack.server.burnish("adapters", "add", name, str(lora))
    models = (MODEL, *names)
    alone = {model: likely(real_stack, model) for model in models}
    for one, other in itertools.combinations(models, 2):
        assert not agree(alone[one], alone[other]), (one, other)
    with ThreadPoolExecutor(3 * len(models)) as pool:
        beside = [
            *zip(models * 3, pool.map(lambda model: likely(real_stack, model), models * 3), strict=True)
        ]
    for model, found in beside:
        assert agree(found, alone[model]), (model, found, alone[model])
        assert min(models, key=lambda other: distance(found, alone[other])) == model, (model, found, alone)


def likely(stack: RealStack, model: str) -> dict[str, float]:
    """The five likeliest first tokens of an answer, and their log-probabilities, in nats."""
    answer = stack.client(timeout=120).chat.completions.create(
        model=model, messages=QUESTION, max_tokens=1, temperature=0, logprobs=True, top_logprobs=5
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    (first,) = logprobs.content or []
    return {token.token: token.logprob for token in first.top_logprobs}


def agree(one: dict[str, float], other: dict[str, float]) -> bool:
    """But for what rounding does."""
    return distance(one, other) < ROUNDING


def distance(one: dict[str, float], other: dict[str, float]) -> float:
    """The most that the log-probability of a token is apart, in nats; infinite where other tokens are likely."""
    both = {*one} & {*other}
    return max(abs(one[token] - other[token]) for token in both) if len(both) >= 4 else math.inf


def test_promise_06_every_answer_names_the_adapter_that_made_it(real_stack: RealStack) -> None:
    name = real_stack.adapter_names[0]
    with real_stack.http() as http:
        digest = http.get(f"/v1/adapters/{name}@1").json()["digest"]
    create = real_stack.client().chat.completions.with_raw_response.create
    made = create(model=name, messages=QUESTION, max_tokens=1)
    assert made.headers["x-burnish-adapter"] == f"{name}@1 {digest}"
    assert made.headers["x-burnish-route"] == name
    base = create(model=MODEL, messages=QUESTION, max_tokens=1)
    assert base.headers["x-burnish-adapter"] == "base"


@pytest.mark.skipif(serves_on_gpu(), reason="beside a GPU the core has nothing else to do")
def test_promise_07_vllms_scheduler_sleeps_while_it_waits_for_the_worker(real_stack: RealStack) -> None:
    def seconds_of(name: str) -> float:
        """Of processor time, of the process that vLLM has named so (proc(5): its user and its system time)."""
        folders = [Path(f"/proc/{process}") for process in descendants(real_stack.server.process.pid)]
        (found,) = (folder for folder in folders if (folder / "comm").read_text().strip() == name)
        *_, user, system = (found / "stat").read_text().rpartition(")")[2].split()[:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    names = ("VLLM::EngineCor", "VLLM::Worker")  # of names the kernel keeps 15 letters
    before = [seconds_of(name) for name in names]
    story: Any = [{"role": "user", "content": "Tell me a long story about a river."}]
    real_stack.client().chat.completions.create(model=MODEL, messages=story, max_tokens=64, temperature=0)
    scheduler, worker = (seconds_of(name) - was for name, was in zip(names, before, strict=True))
    assert scheduler < 0.3 * worker, f"it took {scheduler:.1f} s while the worker computed for {worker:.1f} s"


def test_promise_07_no_token_waits_for_a_message_that_was_lost() -> None:
    """vLLM's own queue between its processes, whose wake-up is lost; by itself its reader looks again after five seconds."""
    from vllm.distributed.device_communicators import shm_broadcast

    vllm_plugin.wait_no_longer(shm_broadcast.SpinCondition, 0.0)
    writer = shm_broadcast.MessageQueue(n_reader=1, n_local_reader=1)
    reader = shm_broadcast.MessageQueue.create_from_handle(writer.export_handle(), 0)
    with ThreadPoolExecutor(1) as pool:
        ready = pool.submit(reader.wait_until_ready)
        writer.wait_until_ready()
        ready.result()
        writer.enqueue("heard")
        assert reader.dequeue() == "heard"
        writer._spin_condition.notify = lambda: None
        sleeping = pool.submit(reader.dequeue)
        time.sleep(0.2)  # it sleeps by then: what it is to be woken by does not come
        began = time.monotonic()
        writer.enqueue("lost")
        assert sleeping.result(30) == "lost"
    assert time.monotonic() - began < LOST_SECONDS


def test_promise_04_an_adapter_that_changes_nothing_is_refused(real_stack: RealStack, tmp_path: Path) -> None:
    folder = write_lora(
        tmp_path / "faint", smollm2(real_stack), seed=3, rank=8, scale=1e-9, target_modules=("q_proj",)
    )
    with real_stack.http() as http:
        made = http.post("/v1/adapters", json={"name": "faint", "path": str(folder)})
        assert made.status_code == 201, made.text
        found = wait_for(lambda: settled(http, "faint@1"), 120)
        assert found["state"] == "failed"
        assert "as the base model does" in found["reason"]

        told: list[tuple[int, str | None]] = []

        def is_unknown() -> bool:
            answer = http.post("/v1/chat/completions", json={"model": "faint", "messages": QUESTION})
            told.append((answer.status_code, answer.json().get("error", {}).get("code")))
            return told[-1] == (404, "model_not_found")

        # The record says so a moment before the gateway has read it again: unavailable until then, and never an answer.
        wait_for(is_unknown, 5)
        assert {*told[:-1]} <= {(503, "engine_unavailable")}, told


def test_promise_04_an_adapter_with_a_wrong_shape_is_refused_by_tensor(
    real_stack: RealStack, tmp_path: Path
) -> None:
    folder = write_lora(tmp_path / "odd", smollm2(real_stack), target_modules=("q_proj",))
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = np.zeros((tensors[name].shape[0], 7), dtype=np.float32)
    save_file(tensors, file)
    with real_stack.http() as http:
        refused = http.post("/v1/adapters", json={"name": "odd", "path": str(folder)})
    assert refused.status_code == 400
    assert name in refused.json()["error"]["message"]


def test_promise_12_the_engines_own_endpoints_cannot_be_reached(real_stack: RealStack) -> None:
    with real_stack.http() as http:
        for path in (
            "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter",
            "/tokenize",
            "/invocations",
            "/metrics",
        ):
            assert http.post(path, json={"lora_name": "x", "lora_path": "/"}).status_code in (404, 405), path


def test_promise_12_no_prompt_and_no_key_reaches_a_log(real_stack: RealStack) -> None:
    secret = "xylophone-marzipan-4711"
    client = real_stack.client()
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": secret}], max_tokens=2)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": secret}],
            max_tokens=2,
            logit_bias={"999999": 1},
        )
    with pytest.raises(openai.AuthenticationError):
        real_stack.server.client(api_key="sk-burnish-wrong-4711").models.list()
    logs = "".join(
        file.read_text(errors="replace") for file in (real_stack.server.home / "logs").glob("*.log")
    )
    logs += real_stack.server.log
    assert secret not in logs
    assert real_stack.api_key not in logs
    assert "wrong-4711" not in logs


def test_too_long_a_context_has_the_code_that_sdk_users_look_for(real_stack: RealStack) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            real_stack.client().chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "word " * 5000}], stream=stream
            )
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_real_engine(real_stack: RealStack, stream: bool) -> None:
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 1500, "ignore_eos": True, "stream": stream}
    with real_stack.http() as http, httpx.Client(timeout=60, trust_env=False) as client:
        request = client.build_request(
            "POST", f"{real_stack.base_url}/chat/completions", json=body, headers=dict(http.headers)
        )
        if stream:
            client.send(request, stream=True).close()
        else:
            request.extensions["timeout"] = {"connect": 5, "read": 1, "write": 5, "pool": 5}
            with pytest.raises(httpx.ReadTimeout):
                client.send(request)
        wait_for(lambda: outstanding(http) == 0, 5)


async def test_promise_05_swaps_on_a_real_engine_fail_no_request(real_stack: RealStack) -> None:
    first, second = (f"{name}@1" for name in real_stack.adapter_names)
    headers = {"authorization": f"Bearer {real_stack.api_key}"}
    said: dict[str, set[str]] = {first: set(), second: set()}
    async with httpx.AsyncClient(base_url=real_stack.server.url, headers=headers, timeout=120) as http:
        made = await http.post("/v1/routes", json={"name": "swapped", "variant": first})
        assert made.status_code == 201, made.text
        done = asyncio.Event()

        async def ask() -> str:
            body = {"model": "swapped", "messages": QUESTION, "max_tokens": 6, "temperature": 0}
            answer = await http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            version = answer.headers["x-burnish-adapter"].split()[0]
            said[version].add(answer.json()["choices"][0]["message"]["content"])
            return version

        async def load() -> None:
            while not done.is_set():
                await ask()

        workers = [asyncio.create_task(load()) for _ in range(3)]
        try:
            for swap in range(20):
                to = second if swap % 2 == 0 else first
                swapped = await http.post("/v1/routes/swapped/promote", json={"variant": to})
                assert swapped.status_code == 200, swapped.text
                assert await ask() == to
        finally:
            done.set()
            await asyncio.gather(*workers)
            await http.delete("/v1/routes/swapped")
    assert not said[first] & said[second], said


def test_a_removed_adapter_leaves_the_real_engine(real_stack: RealStack, tmp_path: Path) -> None:
    folder = write_lora(
        tmp_path / "brief", smollm2(real_stack), seed=9, rank=16, scale=0.08, target_modules=ALL_LINEAR
    )
    with real_stack.http() as http:
        assert http.post("/v1/adapters", json={"name": "brief", "path": str(folder)}).status_code == 201
        assert wait_for(lambda: settled(http, "brief@1"), 120)["state"] == "proved"
        assert http.delete("/v1/routes/brief").status_code == 200
        assert http.delete("/v1/adapters/brief@1").status_code == 202
        wait_for(lambda: http.get("/v1/adapters/brief@1").json()["state"] == "removed", 60)
        engine = http.get("/v1/engines").json()["data"][0]
        assert not [name for name in engine["adapters"] if "brief" in name]


def test_promise_09_a_killed_engine_comes_back_with_its_adapters(real_stack: RealStack) -> None:
    """Last in this file: the engine takes its own start time to come back."""
    name = real_stack.adapter_names[0]
    before = greedy(real_stack, name)
    with real_stack.http() as http:
        pid = http.get("/v1/engines").json()["data"][0]["pid"]
        assert pid
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: http.get("/v1/engines").json()["data"][0]["state"] != "up", 30)
        wait_for(lambda: http.get("/v1/engines").json()["data"][0]["state"] == "up", 240)
        assert http.get("/v1/engines").json()["data"][0]["restarts"] >= 1
    assert greedy(real_stack, name) == before


def settled(http: httpx.Client, ref: str) -> dict[str, Any] | None:
    version: dict[str, Any] = http.get(f"/v1/adapters/{ref}").json()
    return version if version["state"] != "staged" else None


def outstanding(http: httpx.Client) -> int:
    return sum(engine["outstanding"] for engine in http.get("/v1/engines").json()["data"])
