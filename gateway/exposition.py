"""Prometheus' text format (version 0.0.4): the pages of several engines as one page. Pure.

Owns the reading of a page line by line, its labels, and the rule that a family is there once, with one HELP and TYPE.
Numbers stay as they were written: to make floats of them and write them again costs many times as much, and a page of a
vLLM has some thousand. A page that is not sound is refused as a whole, since one bad line spoils the whole scrape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)[ \t]*(?:\{(.*)\})?[ \t]*(?<=[ \t}])(\S+)((?:[ \t]+-?\d+)?)[ \t]*"
)
LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(?:,|$)')
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|inf|nan)", re.IGNORECASE)
HEAD = re.compile(r"#[ \t]+(HELP|TYPE)[ \t]+([a-zA-Z_:][a-zA-Z0-9_:]*)(?:[ \t]+(.*?))?[ \t]*")

SUFFIXES = {
    "counter": ("", "_total"),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("", "_sum", "_count"),
    "gauge": ("",),
    "untyped": ("",),
}
"""What the names of a family's samples may end with, by its type."""


class BadPage(Exception):
    """A page that Prometheus would not read either; the message says why."""


@dataclass(slots=True)
class Family:
    """One metric: what is said of it, and its samples as lines."""

    name: str
    text: str | None = None
    type: str | None = None
    lines: list[str] = field(default_factory=list)

    def has(self, sample: str) -> bool:
        """Whether a sample of this name is one of its own."""
        suffixes = ("", *SUFFIXES[self.type or "untyped"])
        return sample.startswith(self.name) and sample[len(self.name) :] in suffixes


class Pages:
    """The pages of several engines, family by family."""

    def __init__(self, is_wanted: Callable[[str], bool]) -> None:
        """Of the families whose names `is_wanted`."""
        self._is_wanted = is_wanted
        self._families: dict[str, Family] = {}

    def add(self, page: str, relabel: Callable[[Mapping[str, str]], Mapping[str, str]]) -> None:
        """A page, each sample's labels as `relabel` makes them (values as written, escapes and all).

        A family that an earlier page has with another type is left out. Raises BadPage, and then nothing is added.
        """
        for name, family in _read(page, relabel).items():
            known = self._families.setdefault(name, family)
            if known is not family and known.type == family.type:
                known.lines += family.lines

    def text(self) -> str:
        """As one page."""
        wanted = (
            family for family in self._families.values() if family.lines and self._is_wanted(family.name)
        )
        return "".join(f"{line}\n" for family in wanted for line in _lines(family))


def escaped(value: str) -> str:
    """A label's value as it is written."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _lines(family: Family) -> Iterable[str]:
    if family.text is not None:
        yield f"# HELP {family.name} {family.text}"
    if family.type is not None:
        yield f"# TYPE {family.name} {family.type}"
    yield from family.lines


def _read(page: str, relabel: Callable[[Mapping[str, str]], Mapping[str, str]]) -> dict[str, Family]:
    families: dict[str, Family] = {}
    written: dict[str, str] = {}  # most samples share their labels with others
    current = Family("")
    for line in page.split("\n"):
        line = line.rstrip("\r")
        if line.startswith("#"):
            current = _head(line, families) or current
        elif line.strip(" \t"):
            name, labels, rest = _sample(line)
            if not current.has(name):
                current = _family_of(name, families)
            if labels not in written:
                written[labels] = _written(relabel(_labels(labels)))
            current.lines.append(f"{name}{written[labels]} {rest}")
    return families


def _head(line: str, families: dict[str, Family]) -> Family | None:
    """The family that the line is about; None for another comment."""
    found = HEAD.fullmatch(line)
    if found is None:
        return None
    kind, name, told = found.groups()
    family = families.setdefault(name, Family(name))
    if kind == "HELP":
        family.text = told or ""
    elif told in SUFFIXES:
        family.type = told
    else:
        raise BadPage(f"{name} has no type {told!r}")
    return family


def _family_of(sample: str, families: dict[str, Family]) -> Family:
    """The family that a sample of this name belongs to; its own where none was told."""
    names = (sample.removesuffix(suffix) for suffix in ("", "_total", "_bucket", "_sum", "_count"))
    known = (families[name] for name in names if name in families)
    return next((f for f in known if f.has(sample)), None) or families.setdefault(sample, Family(sample))


def _sample(line: str) -> tuple[str, str, str]:
    """Its name, its labels, its value and perhaps its time, as written."""
    found = SAMPLE.fullmatch(line.strip(" \t"))
    if found is None or NUMBER.fullmatch(found[3]) is None:
        raise BadPage(f"not a sample: {line[:80]!r}")
    return found[1], found[2] or "", f"{found[3]}{found[4]}"


def _labels(written: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    place = 0
    while written[place:].strip(" \t"):
        found = LABEL.match(written, place)
        if found is None or found[1] in labels:
            raise BadPage(f"not labels: {written[:80]!r}")
        labels[found[1]] = found[2]
        place = found.end()
    return labels


def _written(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}" if labels else ""
