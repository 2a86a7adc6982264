"""What is found in text as somebody's, what is not, and that no text makes the search slow."""

from __future__ import annotations

import importlib.util
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidRequest
from trainer.pii import Found, detector, find, masked

RANDOM = "a1B2c3D4e5F6g7H8i9J0k1L2"
CARD = "4111 1111 1111 1111"
IBAN = "BE68 5390 0754 7034"

SECRETS = [
    ("private key", "-----BEGIN RSA PRIVATE KEY-----"),
    ("private key", "-----BEGIN PRIVATE KEY-----"),
    ("API key", f"sk-{RANDOM}"),
    ("API key", f"sk-proj-abc_def-{RANDOM}"),
    ("API key", f"pk_live_{RANDOM}"),
    ("API key", f"brn_{RANDOM}"),
    ("AWS key", "AKIAIOSFODNN7EXAMPLE"),
    ("GitHub token", "ghp_" + "a1" * 18),
    ("GitHub token", "github_pat_" + "a1" * 11),
    ("GitLab token", "glpat-" + "a1" * 10),
    ("Slack token", "xoxb-123456789012-abc"),
    ("Google key", "AIza" + "a1-_x" * 7),
    ("Hugging Face token", "hf_" + "aB1" * 10),
    ("web token", "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeK"),
    ("bearer token", f"Authorization: Bearer {RANDOM}"),
    ("bearer token", f"bearer {RANDOM}=="),
    ("password", "password: hunter22x"),
    ("password", '"api_key": "abcd1234efgh"'),
    ("password", "secret=QWxhZGRpbjpvcGVuIHNlc2FtZTE=="),
    ("password", "password=abc:123=de"),
    ("password", "DB_PASSWORD=s3cretvalue"),
    ("password", "export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG"),
    ("password", "client_secret = 'abc123def456'"),
    ("password", "access_token=abc123def456"),
    ("URL with password", "postgresql://ann:pw@db/x"),
    ("e-mail address", "ann.b+news@mail.example.org"),
    ("IBAN", IBAN),
    ("IBAN", IBAN.replace(" ", "")),
    ("IBAN", "DE89 3704 0044 0532 0130 00"),
    ("card number", CARD),
    ("card number", CARD.replace(" ", "-")),
    ("card number", CARD.replace(" ", "")),
    ("card number", "3782 822463 10005"),
    ("card number", "3056 930902 5904"),
    ("social security number", "123-45-6789"),
    ("phone number", "+49 30 12345678"),
    ("phone number", "+1 (555) 123-4567"),
    ("phone number", "(555) 123-4567"),
    ("phone number", "555.123.4567"),
]

HARMLESS = [
    "What is the capital of France?",
    "sk-learn-is-a-library and pk_primary_key",
    "The password: correcthorsebattery",  # one word: it is told of, not given away
    "token: 1234567890",
    "Bearer of good news and of many other things",
    "1234 5678 9012 3456",  # no card begins with 1
    "4111 1111 1111 1112",  # its check digit is wrong
    "0.4111111111111111",
    "sort 5 3 2 8 7 1 9 4 6 2 3 1 5 7 4 4 6 2 2",
    "BE68 5390 0754 7035",
    "version 1.2.3-4567",
    "000-12-3456 or 912-34-5678",
    "2024-01-31 12:30:59",
    "https://example.org:8443/a@b",
    "@ann said a@b",
]


@pytest.mark.parametrize(("kind", "text"), SECRETS)
@pytest.mark.parametrize("around", ["{}", "It is {}.", "see ({}), please", "{}\nNEXT LINE", "12 {} 12"])
def test_it_is_found_in_whatever_stands_around_it(kind: str, text: str, around: str) -> None:
    assert kind in {found.kind for found in find(around.format(text))}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_nobodys_is_left_alone(text: str) -> None:
    assert find(text) == []


@pytest.mark.parametrize("after", [" 123", " 12/25", " 2027", ", exp 12/25", ". Thanks"])
def test_a_card_is_found_with_the_numbers_that_people_write_after_it(after: str) -> None:
    for card in (CARD, CARD.replace(" ", "")):
        assert [found.kind for found in find(card + after)] == ["card number"]
        assert masked(card + after, find(card + after)) == f"[card number]{after}"


def test_a_card_is_found_after_a_number_that_could_be_its_beginning() -> None:
    assert [found.kind for found in find(f"order 2023 {CARD}")] == ["card number"]


@pytest.mark.parametrize("after", [" EUR", " NEXT", " AND SO ON", " OK"])
def test_a_bank_account_is_found_before_words_in_capitals(after: str) -> None:
    assert [found.kind for found in find(IBAN + after)] == ["IBAN"]


def test_the_mask_shows_the_kind_and_nothing_of_what_was_found() -> None:
    text = f"I am ann@example.org, my card is {CARD} and password: hunter22x!"
    assert masked(text, find(text)) == (
        "I am [e-mail address], my card is [card number] and password: [password]"
    )


def test_finds_that_overlap_are_masked_to_the_end_of_the_last() -> None:
    found = [Found("b", 3, 8), Found("a", 2, 5), Found("c", 2, 3)]
    assert masked("0123456789", found) == "01[a]89"


@given(
    st.lists(
        st.tuples(st.integers(0, 25), st.integers(1, 26)).filter(lambda span: span[0] < span[1]), max_size=6
    )
)
def test_the_mask_takes_what_was_found_and_leaves_the_rest_however_the_finds_lie(
    spans: list[tuple[int, int]],
) -> None:
    text = string.ascii_lowercase
    shown = masked(text, [Found("#", start, end) for start, end in spans])
    inside = {text[at] for start, end in spans for at in range(start, end)}
    assert shown.replace("[#]", "") == "".join(char for char in text if char not in inside)


@given(st.text(alphabet=string.printable, max_size=200))
def test_any_text_is_masked_by_its_finds_alone(text: str) -> None:
    assert masked(text, []) == text
    assert (masked(text, find(text)) == text) is (find(text) == [])


PIECES = ["eyJ-", "a.", "a-", "sk-", "sk_a-", "token=", "password ", "bearer ", "DE89 3704 ", "4 ", "4111 ", "4", "+1 ", "a@",
          "a@b.", "-----BEGIN A ", "a://", "a://b:", "a:b@", "(555)", "555-", "xoxb-", "github_pat_", " ", "A", "1", "AB12"]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_makes_the_search_slow(piece: str) -> None:
    """A trainer must not be stopped by what somebody asked: ten times the text may not take a hundred times as long."""

    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        start = time.process_time()
        find(text)
        return time.process_time() - start

    assert seconds(60_000) < 30 * max(0.01, seconds(6_000))


def test_the_setting_says_who_looks() -> None:
    assert detector("off") is None
    assert detector("regex") is find


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is not None, reason="presidio is installed")
def test_presidio_is_asked_for_by_name_where_it_is_not_installed() -> None:
    with pytest.raises(InvalidRequest) as caught:
        detector("presidio")
    assert (caught.value.code, caught.value.param) == ("presidio_unavailable", "training.pii")
    assert "burnish[presidio]" in caught.value.message
