"""The model card of a version: what it learned from, how, what was measured, what it is not good for. Markdown.

Generated from the run's records alone. Holds no prompt and no answer, so that a card can be given away.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.jobs import Job
from adapters.versions import VersionRecord

if TYPE_CHECKING:
    from trainer.publish import Origin

LIMITS = (
    "Measured on held-out rows of the users it was made for: it says nothing about other tasks or other users.",
    "The held-out rows also chose which checkpoint was kept, so that measured gains are a little flattered.",
    "Likelihoods and answers are those of the engine that served it, greedily; sampled answers vary more.",
)

PRIVATE = ("accelerate",)
"""Of a recipe what is this machine's own affair: it may name hosts."""

NAMES = {
    "measure": "measure",
    "role": "role",
    "against": "against",
    "rival": "rival",
    "candidate": "this version",
    "difference": "gain",
    "interval": "interval",
    "rows": "rows",
    "finding": "finding",
}


def text(
    version: VersionRecord,
    job: Job,
    report: Mapping[str, Any],
    origin: Origin,
    approval: Mapping[str, Any],
) -> str:
    """The whole card."""
    parts = (
        f"# {version.ref}",
        _summary(version, job, origin, approval),
        "## Data",
        _data(origin),
        "## Recipe",
        _recipe(origin.manifest),
        "## Results",
        _results(report),
        "## Limits",
        _list([*LIMITS, *_caveats(report)]),
        "## Lineage",
        _lineage(version, job, origin),
    )
    return "\n\n".join(parts) + "\n"


def write(path: Path, content: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(content, encoding="utf-8")
    staged.replace(path)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The gate's lines as a markdown table."""
    rows = [_cells(line) for line in lines]
    head = f"| {' | '.join(NAMES.values())} |\n|{'---|' * len(NAMES)}"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])


def _summary(version: VersionRecord, job: Job, origin: Origin, approval: Mapping[str, Any]) -> str:
    made = datetime.fromtimestamp(version.created, UTC).strftime("%Y-%m-%d %H:%M UTC")
    by = f", {approval['by']}: {approval['reason']}" if approval["kind"] == "override" else ""
    return (
        f"A LoRA of rank {version.rank} for `{version.base_model}`, made {made} by run `{job.id}` ({origin.method}). "
        f"Gate: **{approval['outcome']}**. Approval: {approval['kind']}{by}."
    )


def _data(origin: Origin) -> str:
    report = origin.data
    facts = [f"dataset `{origin.dataset}`", f"drawn: {report.get('drawn', 'unknown')} rows"]
    facts += [
        f"{each['name']}: {each['count']} left out" for each in report.get("filters", ()) if each["count"]
    ]
    facts += [f"{why}: {count} left out" for why, count in report.get("left_out", {}).items()]
    for name in ("train", "held_out"):
        side = report.get(name) or {}
        kinds = ", ".join(f"{count} {kind}" for kind, count in side.get("kinds", {}).items())
        facts.append(
            f"{name}: {side.get('rows', 0)} rows of {side.get('units', 0)} users or conversations ({kinds})"
        )
    facts += [
        f"cap by {cap['of']}: {cap['dropped']} left out" for cap in report.get("caps", ()) if cap["dropped"]
    ]
    replay = report.get("replay") or {}
    if replay.get("taken"):
        facts.append(f"replayed from earlier runs: {replay['taken']} rows")
    return _list(facts)


def _recipe(manifest: Mapping[str, Any]) -> str:
    recipe = {
        **manifest.get("recipe", {}),
        **{name: manifest.get(name) for name in ("device", "dtype", "processes")},
    }
    versions = ", ".join(f"{name} {number}" for name, number in manifest.get("versions", {}).items())
    facts = [
        f"{name}: {value}"
        for name, value in recipe.items()
        if value not in (None, (), [], "") and name not in PRIVATE
    ]
    return _list([*facts, f"versions: {versions}"])


def _results(report: Mapping[str, Any]) -> str:
    rival = report["incumbent"] or report["base"]
    interval = f"{report['confidence']:.0%} bounds, each one-sided, by users or conversations"
    parts = [
        f"Against `{rival}`, on the serving engine. Gains are signed so that above 0 is better; {interval}.",
        table(report["lines"]),
        _list(report["reasons"]),
    ]
    parity = report["parity"]
    if parity:
        parts.append(
            f"Train-serve parity on {parity['rows']} rows: {parity['mean']:.4f} nats a token on average, "
            f"{parity['max']:.4f} at most."
        )
    for side, tasks in report["tasks"].items():
        for task, values in tasks.items():
            told = ", ".join(f"{name} {value}" for name, value in values.items())
            parts.append(f"{task} (lm-evaluation-harness), {side}: {told}")
    if report["load_test"]:
        parts.append(_load_test(report["load_test"]))
    return "\n\n".join(parts)


def _load_test(found: Mapping[str, Any]) -> str:
    told = [
        f"{target['name']} {_number(target['measured'])} (wanted {_number(target['limit'])} {target['unit']})"
        for target in found["targets"]
    ]
    return (
        f"Load test: **{found['verdict']}** over {found['figures']['requests']} requests; {', '.join(told)}."
    )


def _caveats(report: Mapping[str, Any]) -> Iterable[str]:
    counts = report["evaluation"]
    for side, cut in counts.get("cut", {}).items():
        if cut:
            yield f"{cut} of the {side}'s {counts['rows']} answers were cut at {counts['cap_tokens']} tokens."
    for why, count in counts.get("refused", {}).items():
        yield f"{count} questions were refused: {why}."


def _lineage(version: VersionRecord, job: Job, origin: Origin) -> str:
    return _list(
        [
            f"adapter `{version.digest}`",
            f"base model `{version.base_model}` `{version.base_digest or 'digest unknown'}`",
            f"trained from: {job.payload.get('start_from') or 'the base model'}",
            *origin.manifest.get("notes", ()),
            f"route: {job.payload.get('route') or 'none'}",
            f"rows: `burnish adapters show {version.ref} --json` names the completions behind it",
        ]
    )


def _cells(line: Mapping[str, Any]) -> list[str]:
    bounds = f"{_number(line['low'])} to {_number(line['high'])}"
    return [bounds if name == "interval" else _cell(line[name]) for name in NAMES]


def _cell(value: Any) -> str:
    return _number(value) if isinstance(value, float) or value is None else str(value).replace("_", " ")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _list(facts: Iterable[str]) -> str:
    return "\n".join(f"- {fact}" for fact in facts)
