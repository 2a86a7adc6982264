"""What hyper-parameters do: one task, trained again and again through a running gateway; a row of the table a job.

    python -m loadtests.learning --rows 96 --vary learning_rate=0.0003,0.001,0.003
    python -m loadtests.learning --method dpo --set n_epochs=4 --vary sft_weight=0,1
    python -m loadtests.learning --rows 96 --write orders.jsonl    # the task as a training file, and nothing else

The task has exact answers and is made from a seed: an order in a sentence is to be answered with one line of compact
JSON, which the default model never gives by itself. Every job learns from the same rows, is judged on the same others
(the gate's own report), and is ordered with `gate: "report"` and without a route, so that nothing is promoted. Speaks
HTTP only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ITEMS = ("chair", "lamp", "table", "desk", "shelf", "sofa", "stool", "mirror", "carpet", "clock")
COLORS = ("red", "blue", "green", "black", "white", "brown", "grey", "yellow")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Klara", "Leo")
CITIES = ("Berlin", "Paris", "Oslo", "Rome", "Madrid", "Vienna", "Prague", "Dublin", "Lisbon", "Zurich")

LIKED_SHARE = 0.5  # of the rows of a kto file
POLL_SECONDS = 2.0
MEASURES = ("exact_match", "chrf", "nll", "preference_accuracy", "label_margin")


@dataclass(frozen=True)
class Question:
    text: str
    gold: str
    user: str


def questions(seed: int, count: int, users: Sequence[str]) -> list[Question]:
    """Different orders, each from one of `users` in turn."""
    rng = random.Random(seed)
    made: dict[str, Question] = {}
    for user in itertools.cycle(users):
        if len(made) == count:
            break
        item, color, name, city = (rng.choice(words) for words in (ITEMS, COLORS, NAMES, CITIES))
        number = rng.randint(2, 9)
        text = f"{name} from {city} orders {number} {color} {item}s."
        gold = {"item": item, "color": color, "count": number, "name": name, "city": city}
        made[text] = Question(text, json.dumps(gold, separators=(",", ":")), user)
    return list(made.values())


def rows(asked: Sequence[Question], method: str) -> str:
    """The questions as a training file of a method. A worse answer says the same without the form."""
    lines = []
    for number, question in enumerate(asked):
        row: dict[str, Any] = {"prompt": question.text, "user": question.user}
        worse = f"Sure! {question.text} I have noted this order."
        if method == "dpo":
            row |= {"chosen": question.gold, "rejected": worse}
        elif method == "kto":
            liked = number % 2 < 2 * LIKED_SHARE
            row |= {"completion": question.gold if liked else worse, "label": liked}
        else:
            row |= {"completion": question.gold}
        lines.append(json.dumps(row))
    return "\n".join(lines) + "\n"


def upload(http: httpx.Client, content: str) -> str:
    sent = http.post("/files", files={"file": ("rows.jsonl", content)}, data={"purpose": "fine-tune"})
    sent.raise_for_status()
    return str(sent.json()["id"])


def run(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """One job from its order to its end."""
    made = http.post("/fine_tuning/jobs", json=body)
    made.raise_for_status()
    id = made.json()["id"]
    while True:
        job: dict[str, Any] = http.get(f"/fine_tuning/jobs/{id}").raise_for_status().json()
        if job["status"] in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(POLL_SECONDS)


def seconds_of(http: httpx.Client, job: dict[str, Any]) -> tuple[float, float]:
    """(training, all of the run), by the job's events."""
    events = http.get(f"/fine_tuning/jobs/{job['id']}/events", params={"limit": 100}).json()["data"]
    began = next(e["created_at"] for e in events if e["message"] == "Fine-tuning job started")
    steps = [e["created_at"] for e in events if e["type"] == "metrics"]
    return max(steps, default=began) - began, job["finished_at"] - began


def settings(vary: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All combinations of what is varied: KEY=VALUE,VALUE."""
    names = [text.partition("=")[0] for text in vary]
    values = [[_value(text) for text in one.partition("=")[2].split(",")] for one in vary]
    for combination in itertools.product(*values):
        yield dict(zip(names, combination, strict=True))


def line(http: httpx.Client, setting: dict[str, Any], job: dict[str, Any]) -> str:
    report = (job["gate"] or {}).get("report") or {"lines": []}
    found = {each["measure"]: each["candidate"] for each in report["lines"]}
    training, whole = seconds_of(http, job)
    told = ", ".join(f"{name}={value}" for name, value in setting.items()) or "auto"
    numbers = " | ".join("" if found.get(name) is None else f"{found[name]:.3f}" for name in MEASURES)
    ended = "" if job["status"] == "succeeded" else f" {job['status']}: {job['error']['message']}"
    return f"| {told}{ended} | {training:.0f} | {whole:.0f} | {numbers} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.learning", description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--method", choices=("supervised", "dpo", "kto"), default="supervised")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=VALUE,VALUE")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    asked = questions(given.seed, given.rows + given.held_out, [f"user-{n}" for n in range(given.rows)])
    if given.write is not None:
        given.write.write_text(rows(asked[: given.rows], given.method))
        return 0
    headers = {"authorization": f"Bearer {os.environ.get('BURNISH_API_KEY', 'none')}"}
    with httpx.Client(base_url=given.base_url, headers=headers, timeout=60, trust_env=False) as http:
        files = [
            upload(http, rows(some, given.method)) for some in (asked[: given.rows], asked[given.rows :])
        ]
        print(f"| {given.method} | training, s | run, s | {' | '.join(MEASURES)} |")
        print(f"|---|---:|---:|{'---:|' * len(MEASURES)}", flush=True)
        for setting in settings(given.vary):
            fixed = {text.partition("=")[0]: _value(text.partition("=")[2]) for text in given.set}
            parameters = {"hyperparameters": {**fixed, **setting}}
            body = {
                "model": given.model,
                "training_file": files[0],
                "validation_file": files[1],
                "method": {"type": given.method, given.method: parameters},
                "seed": given.seed,
                "gate": "report",
            }
            print(line(http, setting, run(http, body)), flush=True)
    return 0


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    raise SystemExit(main())
