"""Every method trains for real on the default weights, and real vLLM loads and serves what came of it; plain supervised
LoRA does so in test_learning.py.

Ordered through OpenAI's fine-tuning API, from files. So few rows prove nothing, so the jobs are ordered with
`gate: "report"`; what a gate asks for is tested in test_learning.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.conftest import RealStack, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CITIES = {"Berlin": "Germany", "Paris": "France", "Oslo": "Norway", "Rome": "Italy", "Madrid": "Spain", "Vienna":
          "Austria", "Prague": "Czechia", "Dublin": "Ireland", "Lisbon": "Portugal", "Athens": "Greece",
          "Warsaw": "Poland", "Helsinki": "Finland"}  # fmt: skip
HELD_OUT = 2

Line = Callable[[str, str], dict[str, Any]]


def answered(city: str, country: str) -> dict[str, Any]:
    asked = {"role": "user", "content": f"Where is {city}?"}
    return {"messages": [asked, {"role": "assistant", "content": f"<{country}>"}]}


def preferred(city: str, country: str) -> dict[str, Any]:
    return {"prompt": f"Where is {city}?", "chosen": f"<{country}>", "rejected": f"{city} is a city."}


def labelled(city: str, country: str) -> dict[str, Any]:
    liked = len(city) % 2 == 0
    said = f"<{country}>" if liked else f"{city} is a city."
    return {"prompt": f"Where is {city}?", "completion": said, "label": liked}


JOBS: dict[str, tuple[str, Line, dict[str, Any]]] = {
    "lora-dpo": ("dpo", preferred, {}),
    "lora-kto": ("kto", labelled, {}),
    "qlora-sft": ("supervised", answered, {"quantization": "nf4"}),
}


def upload(client: openai.OpenAI, lines: list[dict[str, Any]]) -> str:
    content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    return client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


def order(client: openai.OpenAI, name: str) -> str:
    method, line, more = JOBS[name]
    lines = [line(city, country) for city, country in CITIES.items()]
    method_body: Any = {"type": method, method: {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}}
    job = client.fine_tuning.jobs.create(
        model="smollm2-135m-instruct",
        training_file=upload(
            client, lines[HELD_OUT:] + [line("Bern", "Switzerland"), line("Cairo", "Egypt")]
        ),
        validation_file=upload(client, lines[:HELD_OUT]),
        method=method_body,
        suffix=name,
        seed=7,
        extra_body={"gate": "report", **more},
    )
    return job.id


@pytest.fixture(scope="module")
def jobs(real_stack: RealStack) -> dict[str, str]:
    """All of them wait at once; the one worker takes them one after another."""
    client = real_stack.client()
    return {name: order(client, name) for name in JOBS}


@pytest.mark.parametrize("name", JOBS)
def test_what_a_method_trains_is_loaded_and_served(
    real_stack: RealStack, jobs: dict[str, str], name: str
) -> None:
    client = real_stack.client(timeout=120)

    def ended() -> Any:
        job = client.fine_tuning.jobs.retrieve(jobs[name])
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    job = wait_for(ended, 600)
    assert job.status == "succeeded", job.error
    assert job.method.type == JOBS[name][0]
    assert job.fine_tuned_model == f"{name}@1"
    ask: Any = [{"role": "user", "content": "Where is Berlin?"}]
    answers = {
        model: client.chat.completions.with_raw_response.create(
            model=model, messages=ask, max_tokens=1, temperature=0, logprobs=True
        )
        for model in (job.fine_tuned_model, real_stack.model)
    }
    assert answers[job.fine_tuned_model].headers["x-burnish-adapter"].startswith(f"{name}@1 sha256:")
    logprobs = [answer.parse().choices[0].logprobs.content[0].logprob for answer in answers.values()]
    assert logprobs[0] != logprobs[1], "it answers as the base does"
    csv = client.files.content(job.result_files[0]).text.splitlines()
    assert csv[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    losses = [float(line.split(",")[1]) for line in csv[1:] if line.split(",")[1]]
    assert len(losses) == 3
    parity = job.gate["report"]["parity"]
    assert parity["rows"] > 0
    assert parity["worst_row_mean"] <= 0.25
