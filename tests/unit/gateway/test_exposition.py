"""Pages of metrics as one: what prometheus_client's own parser reads of each is what it reads of all, relabelled."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.exposition import BadPage, Pages, escaped

Key = tuple[str, tuple[tuple[str, str], ...]]


def everything(_: str) -> bool:
    return True


def of(engine: str) -> object:
    def relabel(labels: Mapping[str, str]) -> dict[str, str]:
        return {"engine": escaped(engine), **labels}

    return relabel


def together(pages: Mapping[str, str]) -> str:
    merged = Pages(everything)
    for engine, page in pages.items():
        merged.add(page, of(engine))  # type: ignore[arg-type]
    return merged.text()


def samples(text: str, **more: str) -> dict[Key, float]:
    return {
        (sample.name, tuple(sorted({**sample.labels, **more}.items()))): float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def same(a: dict[Key, float], b: dict[Key, float]) -> bool:
    return a.keys() == b.keys() and all(a[k] == b[k] or (math.isnan(a[k]) and math.isnan(b[k])) for k in a)


NAMES = st.from_regex(r"[a-z_:][a-z0-9_:]{0,12}", fullmatch=True)
VALUES = st.text(max_size=12)
NUMBERS = st.one_of(st.floats(), st.integers(-(10**15), 10**15))


@st.composite
def pages(draw: st.DrawFn) -> str:
    """What prometheus_client would write of a few metrics of every kind."""
    registry = CollectorRegistry()
    for position, kind in enumerate(draw(st.lists(st.sampled_from("cghs"), max_size=5))):
        name = f"m{position}_{draw(NAMES)}x"
        text, label = draw(VALUES), draw(VALUES)
        match kind:
            case "c":
                Counter(name, text, ["a"], registry=registry).labels(label).inc(draw(st.integers(0, 10**9)))
            case "g":
                Gauge(name, text, ["a", "model_name"], registry=registry).labels(label, "m").set(
                    draw(NUMBERS)
                )
            case "h":
                histogram = Histogram(name, text, registry=registry)
                for value in draw(st.lists(st.floats(0, 100), max_size=3)):
                    histogram.observe(value)
            case _:
                Summary(name, text, ["a"], registry=registry).labels(label).observe(draw(st.floats(0, 9)))
    return generate_latest(registry).decode()


@given(pages(), pages(), VALUES.filter(bool))
def test_every_sample_of_every_page_is_there_under_its_engine(one: str, other: str, engine: str) -> None:
    merged = together({engine: one, "second": other})
    first = {family.name: family.type for family in text_string_to_metric_families(one)}
    clashes = {
        family.name
        for family in text_string_to_metric_families(other)
        if first.get(family.name, family.type) != family.type
    }
    if clashes or engine == "second":
        return
    assert same(samples(merged), samples(one, engine=engine) | samples(other, engine="second"))
    heads = [line for line in merged.split("\n") if line.startswith("# TYPE")]
    assert len(heads) == len({line.split(" ")[2] for line in heads}), "a family is there once"


@given(st.text(max_size=60))
def test_no_page_makes_anything_but_a_page_or_a_refusal(page: str) -> None:
    try:
        merged = together({"e": page})
    except BadPage:
        return
    assert all('engine="e"' in line for line in merged.split("\n") if line and not line.startswith("#"))


def test_a_family_of_two_engines_is_one_with_the_samples_of_both() -> None:
    page = "# HELP up Whether.\n# TYPE up gauge\nup 1\n"
    assert together({"a": page, "b": page.replace("1", "0")}) == (
        '# HELP up Whether.\n# TYPE up gauge\nup{engine="a"} 1\nup{engine="b"} 0\n'
    )


def test_numbers_and_times_stay_as_they_were_written() -> None:
    assert together({"e": "a 1e+06\nb 0.10 1700000000000\nc +Inf\nd NaN\n"}) == (
        'a{engine="e"} 1e+06\nb{engine="e"} 0.10 1700000000000\nc{engine="e"} +Inf\nd{engine="e"} NaN\n'
    )


def test_a_family_that_two_engines_type_differently_is_the_first_ones() -> None:
    merged = together({"a": "# TYPE x gauge\nx 1\n", "b": "# TYPE x counter\nx 2\ny 3\n"})
    assert merged == '# TYPE x gauge\nx{engine="a"} 1\ny{engine="b"} 3\n'


def test_a_page_whose_families_are_told_in_pieces_is_put_in_order() -> None:
    page = '# TYPE h histogram\nh_bucket{le="+Inf"} 1\n# TYPE g gauge\ng 1\nh_sum 2\nh_count 1\n'
    assert together({"e": page}) == (
        '# TYPE h histogram\nh_bucket{engine="e",le="+Inf"} 1\nh_sum{engine="e"} 2\nh_count{engine="e"} 1\n'
        '# TYPE g gauge\ng{engine="e"} 1\n'
    )


@pytest.mark.parametrize(
    "line",
    [
        "<html>",
        "a",
        "a one",
        "a 1 2 3",
        'a{x="1" 1',
        "a{x=1} 1",
        'a{x="1",x="2"} 1',
        'a{x="1"}} 1',
        "1a 2",
        "a 1_000",
        "# TYPE a banana",
    ],
)
def test_one_line_that_is_none_refuses_the_page_and_adds_nothing(line: str) -> None:
    merged = Pages(everything)
    with pytest.raises(BadPage):
        merged.add(f"good 1\n{line}\n", of("e"))  # type: ignore[arg-type]
    assert merged.text() == ""


def test_only_what_is_wanted_is_passed_on() -> None:
    merged = Pages(lambda family: family.startswith("vllm:"))
    merged.add("vllm:x 1\nprocess_open_fds 9\n", of("e"))  # type: ignore[arg-type]
    assert merged.text() == 'vllm:x{engine="e"} 1\n'
