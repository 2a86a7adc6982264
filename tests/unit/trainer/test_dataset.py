"""A run's dataset: what it holds, that it stays what it is, and that nobody who is held out is ever learned from."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from adapters.artifacts import ArtifactStore
from adapters.completions import Completion, Completions
from adapters.datasets import Datasets
from adapters.errors import BurnishError, InvalidRequest, NotFound, RowError, StaleWorker
from adapters.feedback import Draft, give
from adapters.files import Files, Purpose
from adapters.forget import forget_user
from adapters.jobs import Job, Jobs
from adapters.registry import Registry
from adapters.routes import Routes
from adapters.rows import Row, RowKind, Split
from adapters.settings import Settings, Training
from tests.judged import stored
from tests.lora import TINY_CONFIG, write_lora
from tests.migrated import migrated
from tests.unit.trainer.tiny import row, tokenizer
from trainer.dataset import Built, build, earlier_rows, read, snapshot
from trainer.filters import prompt_key
from trainer.rendering import Rendering
from trainer.split import voice_of

BASE = "base-model"
RENDERING = Rendering(tokenizer())
FEW = Training(min_held_out_rows=3, min_held_out_units=2, held_out_share=0.2, pii="regex")

KINDS: dict[str, dict[str, Any]] = {
    "demonstration": {}, "pair": {"rejected": "no"}, "like": {"liked": True}, "dislike": {"liked": False},
    "secret": {"answer": "mail ann@example.org"}, "refusal": {"answer": "I'm unable to say", "liked": True},
    "empty": {"answer": " "},
}  # fmt: skip
ROWS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 9), st.sampled_from(list(KINDS)), st.integers(0, 3)),
    max_size=30,
).map(
    lambda drawn: [
        row(f"question {prompt}", **KINDS[kind], unit=f"user:u{user}", user=f"u{user}", created=float(at))
        for prompt, user, kind, at in drawn
    ]
)


def built(rows: Sequence[Row], training: Training = FEW, seed: int = 7, **more: Any) -> Built:
    return build(rows, RENDERING, training, seed, **{"max_length": 200, "key": "support", **more})


def refused(call: Callable[[], Any]) -> BurnishError:
    with pytest.raises(BurnishError) as caught:
        call()
    return caught.value


def of_users(count: int, first: int = 0, words: str = "question", **more: Any) -> list[Row]:
    """One row of each user, each with words of its own."""
    rest = {name: value for name, value in more.items() if name != "answer"}
    return [
        row(f"{words} {n}", more.get("answer", f"answer {n}"), unit=f"user:u{n}", user=f"u{n}", **rest)
        for n in range(first, first + count)
    ]


def ids(rows: Iterable[Row]) -> set[str]:
    return {each.id for each in rows}


def units(rows: Iterable[Row]) -> set[str]:
    return {each.unit for each in rows}


def prompts(rows: Iterable[Row]) -> set[bytes]:
    return {prompt_key(each) for each in rows}


# -- the same inputs, the same dataset -----------------------------------------------------------------
@given(ROWS, st.integers(0, 2**32))
@hypothesis_settings(max_examples=40)
def test_the_same_rows_and_seed_give_the_same_digest_whatever_their_order(rows: list[Row], seed: int) -> None:
    mixed = random.Random(seed).sample(rows, len(rows))
    try:
        one = built(rows)
    except InvalidRequest as error:
        assert refused(lambda: built(mixed)).message == error.message
        return
    assert built(mixed).digest == one.digest
    assert built(rows) == one


def test_the_same_words_of_two_users_are_the_same_ones_row_whatever_the_order() -> None:
    twins = [row("question", user=f"u{i}", unit=f"user:u{i}") for i in range(2)]
    rows = of_users(10)
    assert built([*twins, *rows]).digest == built([*reversed(twins), *rows]).digest


def test_other_rows_another_seed_and_another_split_have_another_digest() -> None:
    rows = of_users(12)
    digests = [
        built(rows).digest,
        built(rows[1:]).digest,
        built(rows, seed=8).digest,
        built(rows, key="sales").digest,
        built([*rows[1:], row("question 0", "another", user="u0", unit="user:u0")]).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert all(digest.startswith("sha256:") and len(digest) == 71 for digest in digests)


def test_the_rows_keep_the_kind_they_were_drawn_in() -> None:
    made = built([*of_users(10), *of_users(10, 10, rejected="no"), *of_users(4, 20, liked=True)])
    assert made.method == "dpo"
    assert {each.kind for each, _ in made.rows} == set(RowKind)


# -- the report ----------------------------------------------------------------------------------------
def dropped(report: dict[str, Any]) -> int:
    return sum(each["count"] for each in report["filters"])


def check_counts(made: Built) -> None:
    """Whatever was drawn is learned from, held out, or counted where it was left out."""
    report, split, replay = made.report, made.report["split"], made.report["replay"]
    checked = report["validation"] or {"drawn": 0, "filters": {}}
    drawn = report["drawn"] - dropped(report) - sum(report["unused"].values())
    drawn += checked["drawn"] - sum(checked["filters"].values())
    assert drawn == split["left_out"] + split["held_out"] + replay["known"] + replay["new"]
    assert len(made.train) == replay["new"] + replay["taken"] - sum(cap["dropped"] for cap in report["caps"])
    assert len(made.held_out) == split["held_out"] == report["held_out"]["rows"]
    for name, rows in (("train", made.train), ("held_out", made.held_out)):
        side = report[name]
        assert (side["rows"], side["units"]) == (len(rows), len(units(rows)))
        assert sum(side["kinds"].values()) == len(rows)


@given(ROWS, ROWS, st.none() | ROWS, st.sampled_from(["auto", "kto", "dpo", "supervised"]))
@hypothesis_settings(max_examples=60)
def test_what_was_drawn_is_kept_or_counted_where_it_was_left_out(
    rows: list[Row], earlier: list[Row], validation: list[Row] | None, asked: str
) -> None:
    training = FEW.model_copy(update={"max_share_per_user": 0.34})
    try:
        made = built(rows, training, earlier=earlier, validation=validation, asked=asked)
    except InvalidRequest as error:
        assert error.code == "nothing_to_learn"
        return
    check_counts(made)


def test_the_report_names_filters_method_split_caps_and_what_could_not_be_drawn() -> None:
    rows = [*of_users(20), *of_users(3, 20, answer="mail ann@example.org"), *of_users(2, 30, liked=False)]
    report = built(rows, left_out=Counter({"a comment": 4})).report
    assert (report["drawn"], report["left_out"]) == (25, {"a comment": 4})
    assert {each["name"]: each["count"] for each in report["filters"] if each["count"]} == {
        "personal_data": 3
    }
    assert report["unused"] == {"disliked answers, which supervised cannot learn from": 2}
    assert report["method"] == {
        "method": "supervised", "asked": "auto", "why": "20 accepted answers, few or none against a worse one",
    }  # fmt: skip
    assert report["split"] == {
        "by": "unit", "share": 0.2, "held_out": 4, "with_accepted_answer": 4, "enough": True, "left_out": 0,
    }  # fmt: skip
    assert [cap["of"] for cap in report["caps"]] == ["key", "user"]
    assert (report["seed"], report["max_length"]) == (7, 200)


def test_the_report_says_where_too_few_are_held_out_for_a_verdict() -> None:
    assert built(of_users(4)).report["split"]["enough"] is False


# -- never both learned from and held out --------------------------------------------------------------
@given(
    st.lists(
        st.tuples(ROWS, st.none() | ROWS, st.sampled_from(["support", "sales"])), min_size=2, max_size=4
    ),
    st.booleans(),
)
@hypothesis_settings(max_examples=25)
def test_promise_09_nobody_is_held_out_who_is_learned_from_in_this_run_or_those_it_goes_on_from(
    runs: list[tuple[list[Row], list[Row] | None, str]], all_again: bool
) -> None:
    """Whoever decides who is held out, whether rows are drawn again or come to it, by unit or by file."""
    drawn: list[Row] = []
    learned: list[Row] = []
    for rows, validation, key in runs:
        drawn = [*drawn, *rows] if all_again else rows
        try:
            made = built(drawn, earlier=learned, validation=validation, key=key)
        except InvalidRequest:
            continue
        learned += made.train
        assert not units(learned) & units(made.held_out)
        assert not prompts(learned) & prompts(made.held_out)


def test_promise_09_whoever_was_held_out_is_so_in_the_next_run_too() -> None:
    first = built(of_users(40))
    again = built([*of_users(40), *of_users(1, 40)], earlier=first.train)
    assert units(first.held_out) <= units(again.held_out) | {"user:u40"}
    assert len(first.held_out) == 8


def test_promise_09_a_user_whose_trained_answer_is_deleted_is_not_held_out_afterwards() -> None:
    """The version has learned from them all the same."""
    earlier = of_users(30, words="then", completion_id="gone")
    made = built(of_users(30), earlier=earlier, gone={"gone"})
    assert made.held_out == ()
    assert made.report["replay"]["taken"] == 0


def test_promise_10_a_loud_user_has_a_fifth_of_what_is_learned_however_often_they_speak() -> None:
    loud = [row(f"loud {i}", f"yes {i}", unit="user:loud", user="loud") for i in range(60)]
    quiet = of_users(40)
    made = built([*loud, *quiet], Training())
    counts = Counter(voice_of(each) for each in made.train)
    assert max(counts.values()) <= 0.2 * len(made.train)
    assert counts["user:loud"] >= 0.15 * len(made.train)
    assert made.report["caps"][1] | {"dropped": None} == {
        "of": "user", "share": 0.2, "voices": len(counts), "applied": True, "dropped": None,
    }  # fmt: skip


def test_promise_10_with_replayed_rows_too_nobody_has_more_than_their_share() -> None:
    earlier = [row(f"then {i}", f"yes {i}", unit="user:loud", user="loud") for i in range(200)]
    made = built(of_users(40), Training(), earlier=earlier)
    counts = Counter(voice_of(each) for each in made.train)
    assert 0 < counts["user:loud"] <= 0.2 * len(made.train)


def test_where_there_are_too_few_voices_for_the_cap_the_report_says_so() -> None:
    rows = [row(f"q {i}", f"a {i}", unit=f"user:u{i % 3}", user=f"u{i % 3}") for i in range(30)]
    cap = built(rows, Training()).report["caps"][1]
    assert cap["applied"] is False
    assert "no choice of rows gives each at most 20%" in cap["note"]


# -- what was learned before ---------------------------------------------------------------------------
def test_a_share_of_the_earlier_rows_is_mixed_in() -> None:
    earlier = of_users(50, words="then")
    made = built(of_users(30, 50), earlier=earlier)
    assert made.report["replay"] == {"earlier": 50, "taken": 10, "new": 24, "known": 0}
    assert len(ids(made.train) & ids(earlier)) == 10


def test_no_more_earlier_rows_than_new_ones_are_mixed_in_beyond_a_few() -> None:
    earlier = of_users(1000, words="then")
    assert built(of_users(20, 1000), earlier=earlier).report["replay"]["taken"] == 64
    assert built(of_users(150, 1000), earlier=earlier).report["replay"]["taken"] == 120


def test_what_was_learned_is_not_new_a_second_time() -> None:
    first = built(of_users(20))
    made = built([*of_users(20), *of_users(10, 20)], earlier=first.train)
    assert made.report["replay"]["known"] == len(first.train)
    assert not ids(made.train) - ids(of_users(10, 20)) - ids(first.train)
    assert made.report["replay"]["new"] == 30 - len(first.train) - len(made.held_out)


def test_where_nothing_is_new_everything_is_learned_again() -> None:
    first = built(of_users(20))
    made = built(of_users(20), earlier=first.train)
    assert ids(made.train) == ids(first.train)
    assert ids(made.held_out) == ids(first.held_out)
    assert made.report["replay"] == {"earlier": 16, "taken": 0, "new": 16, "known": 0}


def test_rows_of_deleted_completions_are_never_replayed() -> None:
    earlier = [*of_users(100, words="then", completion_id="gone"), *of_users(20, words="once")]
    made = built(
        of_users(40, 100), FEW.model_copy(update={"replay_share": 1.0}), earlier=earlier, gone={"gone"}
    )
    assert made.report["replay"]["taken"] == 20
    assert not any(each.completion_id for each in made.train)


def test_a_row_is_not_replayed_where_something_new_was_said_of_the_same_answer() -> None:
    earlier = [row("q", "Pairs", unit="user:ann", user="ann", completion_id="c1")]
    fresh = row("q", "Paris", unit="user:ann", user="ann", completion_id="c1")
    made = built([*of_users(20), fresh], FEW.model_copy(update={"replay_share": 1.0}), earlier=earlier)
    assert fresh in made.train
    assert earlier[0] not in made.train


def test_earlier_rows_are_replayed_as_the_filters_are_now() -> None:
    earlier = of_users(10, words="then", answer="mail ann@example.org")
    always = FEW.model_copy(update={"replay_share": 1.0})
    assert built(of_users(10, 10), always.model_copy(update={"pii": "off"}), earlier=earlier).report[
        "replay"
    ]["taken"]
    assert built(of_users(10, 10), always, earlier=earlier).report["replay"]["taken"] == 0


def test_earlier_rows_that_the_method_cannot_use_are_not_replayed() -> None:
    earlier = of_users(10, words="then", liked=False)
    always = FEW.model_copy(update={"replay_share": 1.0})
    assert built(of_users(10, 10), always, earlier=earlier).report["replay"]["taken"] == 0
    assert built(of_users(10, 10), always, earlier=earlier, asked="kto").report["replay"]["taken"] == 10


# -- a validation file ---------------------------------------------------------------------------------
def test_a_validation_file_is_what_is_held_out() -> None:
    made = built(of_users(20), validation=of_users(5, 20, words="check"))
    assert ids(made.held_out) == ids(of_users(5, 20, words="check"))
    assert ids(made.train) == ids(of_users(20))
    assert made.report["split"]["by"] == "validation file"
    assert made.report["validation"] == {
        "drawn": 5,
        "filters": dict.fromkeys(["personal_data", "duplicate", "refusal", "length", "near_duplicate"], 0),
    }


def test_promise_09_what_shares_its_user_or_its_prompt_with_the_validation_file_is_not_trained_on() -> None:
    validation = [
        row("question 3", "checked", unit="user:other"),
        row("new", "checked", unit="user:u5", user="u5"),
    ]
    made = built(of_users(20), validation=validation)
    assert ids(of_users(20)) - ids(made.train) == ids([of_users(20)[3], of_users(20)[5]])
    assert made.report["split"]["left_out"] == 2


def test_rows_of_a_validation_file_are_filtered_and_counted() -> None:
    validation = [*of_users(3, 20), *of_users(2, 30, answer="mail ann@example.org")]
    report = built(of_users(20), validation=validation).report
    assert report["validation"]["filters"]["personal_data"] == 2
    assert report["held_out"]["rows"] == 3


# -- nothing to learn ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rows", "more", "words"),
    [
        ([], {}, "no usable feedback or rows"),
        (
            of_users(3, answer="mail ann@example.org"),
            {},
            "of 3 rows drawn the filters left none (personal_data 3)",
        ),
        (of_users(3, answer="x" * 300), {}, "(length 3)"),
        (of_users(3), {"validation": of_users(3)}, "shares its user or its prompt with what is held out"),
        (
            [*of_users(1, liked=True), *of_users(9, 1, liked=False)],
            {"validation": of_users(1), "asked": "kto"},
            "shares its user or its prompt with what is held out",
        ),
        (of_users(3, liked=False), {}, "only learn what not to say"),
        (of_users(3), {"asked": "dpo"}, "no correction or preference"),
    ],
)
def test_where_there_is_nothing_to_learn_it_says_why(
    rows: list[Row], more: dict[str, Any], words: str
) -> None:
    error = refused(lambda: built(rows, **more))
    assert (error.status, error.code) == (400, "nothing_to_learn")
    assert words in error.message


def test_the_words_of_an_error_are_nobodys() -> None:
    assert "ann@" not in refused(lambda: built(of_users(3, answer="mail ann@example.org"))).message


# -- the snapshot --------------------------------------------------------------------------------------
class Shop:
    """A route with its completions, jobs, and versions that jobs have made."""

    def __init__(self, home: Path) -> None:
        engine = {"name": "e0", "kind": "vllm", "model": BASE, "url": "http://127.0.0.1:1"}
        training = FEW.model_dump()
        self.settings = Settings.model_validate({"home": home, "engines": [engine], "training": training})
        self.db = migrated(home / "burnish.db")
        self.jobs = Jobs(self.db)
        self.seed = 0
        self.registry = Registry(self.db, ArtifactStore(self.settings.artifact_root))
        self.registry.register_base(BASE, None)
        Routes(self.db).create("support", BASE, "anna")

    def correct(self, prompt: str, user: str, words: str = "right", key_id: str | None = None) -> Completion:
        judged = stored(self.db, f"{prompt}?", "wrong", user=user, key_id=key_id)
        with self.db.begin() as connection:
            give(connection, Draft(judged.id, demonstration=f"{words}, {prompt}"), key_id)
        return judged

    def fill(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.correct(f"question {number}", f"u{number}")

    def job(self, **payload: Any) -> Job:
        values = {
            "source": {"kind": "feedback", "route": "support", "since": None}, "adapter": "support",
            "base_model": BASE, "start_from": None, "method": "auto", "hyperparameters": {}, "seed": 7, **payload,
        }  # fmt: skip
        self.jobs.enqueue(kind="training", route="support", payload=values)
        return self.claim()

    def claim(self, now: float | None = None) -> Job:
        claimed = self.jobs.claim("worker", ["training"], 60.0, now)
        assert claimed is not None
        return claimed

    def folder(self, job: Job) -> Path:
        return self.settings.run_root / job.id

    def snapshot(self, job: Job) -> Built:
        return snapshot(self.db, self.settings, job, RENDERING, self.folder(job))

    def version(self, job: Job) -> str:
        """What the job has made; it is over then."""
        self.jobs.fail(job.id, job.token, {"code": "over", "message": "It is over."})
        return self.imported(origin=job.id)

    def imported(self, **more: Any) -> str:
        self.seed += 1
        files = write_lora(self.settings.home / f"lora-{self.seed}", TINY_CONFIG, seed=self.seed)
        return self.registry.import_adapter("support", files, BASE, TINY_CONFIG, "anna", **more).ref

    def file(self, lines: Iterable[dict[str, Any]]) -> str:
        content = b"".join(orjson.dumps(line) + b"\n" for line in lines)
        return Files(self.db, self.settings.file_root).put(content, "rows.jsonl", Purpose.FINE_TUNE, None).id


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path / "home")
    yield made
    made.db.close()


def test_a_snapshot_is_in_the_runs_folder_and_on_record(shop: Shop) -> None:
    shop.fill(0, 20)
    job = shop.job()
    made = shop.snapshot(job)
    assert made.method == "dpo"
    assert made.report["drawn"] == 20
    assert read(shop.folder(job) / "dataset") == made
    record = Datasets(shop.db).of_job(job.id)
    assert record is not None
    assert (record.digest, record.route) == (made.digest, "support")
    recorded = Datasets(shop.db).rows(made.digest, job.id)
    assert [(each.row_id, each.split) for each in recorded] == [(row.id, split) for row, split in made.rows]
    assert {each.split for each in recorded} == set(Split)
    check_counts(made)


def test_no_text_of_a_row_is_on_record_and_none_of_somebodys_in_the_folder(shop: Shop) -> None:
    shop.fill(0, 20)
    shop.correct("mine", "u99", "mail ann@example.org")
    shop.correct("dull", "u98", "word " * 2000)
    job = shop.job()
    made = shop.snapshot(job)
    assert [each["filter"] for each in _lines(shop.folder(job) / "dataset" / "dropped.jsonl")] == [
        "personal_data", "length",
    ]  # fmt: skip
    assert any(each["examples"] for each in made.report["filters"])
    record = Datasets(shop.db).of_job(job.id)
    assert record is not None
    assert "word word" not in str(record.report)
    assert [each["count"] for each in record.report["filters"]] == [
        each["count"] for each in made.report["filters"]
    ]
    assert "word word" not in (shop.folder(job) / "dataset" / "report.json").read_text()
    for file in (shop.folder(job) / "dataset").iterdir():
        assert "ann@example.org" not in file.read_text()


def test_promise_08_a_resumed_run_reads_what_is_there_whatever_was_said_meanwhile(shop: Shop) -> None:
    shop.fill(0, 20)
    job = shop.job()
    first = shop.snapshot(job)
    shop.fill(20, 10)
    shop.jobs.release(job.id, job.token)
    again = shop.claim()
    assert again.token > job.token
    assert shop.snapshot(again) == first
    assert len(Datasets(shop.db).rows(first.digest, job.id)) == 20


def test_promise_08_what_is_in_the_folder_and_not_on_record_is_put_there(shop: Shop) -> None:
    shop.fill(0, 20)
    job = shop.job()
    made = shop.snapshot(job)
    shop.version(job)
    other = shop.job()
    shutil.copytree(shop.folder(job), shop.folder(other))
    assert shop.snapshot(other) == made
    record = Datasets(shop.db).of_job(other.id)
    assert record is not None
    assert record.digest == made.digest


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "train.jsonl").unlink(),
        lambda folder: (folder / "held_out.jsonl").unlink(),
        lambda folder: (folder / "report.json").unlink(),
        lambda folder: (folder / "report.json").write_text('{"drawn":'),
        lambda folder: (folder / "train.jsonl").write_bytes((folder / "train.jsonl").read_bytes()[:-9]),
        lambda folder: (folder / "train.jsonl").write_bytes(
            b"".join((folder / "train.jsonl").read_bytes().splitlines(keepends=True)[1:])
        ),
        lambda folder: (folder / "held_out.jsonl").write_bytes(b""),
    ],
)
def test_promise_08_a_snapshot_that_is_not_whole_is_drawn_again(
    shop: Shop, harm: Callable[[Path], None]
) -> None:
    shop.fill(0, 20)
    job = shop.job()
    first = shop.snapshot(job)
    harm(shop.folder(job) / "dataset")
    assert read(shop.folder(job) / "dataset") is None
    assert shop.snapshot(job) == first
    assert read(shop.folder(job) / "dataset") == first


def test_promise_08_what_a_killed_attempt_has_begun_to_write_is_cleared_away(shop: Shop) -> None:
    shop.fill(0, 20)
    job = shop.job()
    begun = shop.folder(job) / ".dataset-begun"
    begun.mkdir(parents=True)
    (begun / "train.jsonl").write_text('{"prompt": "half')
    assert shop.snapshot(job).report["drawn"] == 20
    assert [file.name for file in shop.folder(job).iterdir()] == ["dataset"]


def test_promise_08_a_worker_that_lost_its_job_leaves_neither_record_nor_rows(shop: Shop) -> None:
    shop.fill(0, 20)
    job = shop.job()
    assert job.lease_until is not None
    taken = shop.claim(job.lease_until + 1)
    assert taken.id == job.id
    assert isinstance(refused(lambda: shop.snapshot(job)), StaleWorker)
    assert Datasets(shop.db).of_job(job.id) is None
    assert list(shop.folder(job).iterdir()) == []
    assert shop.snapshot(taken).report["drawn"] == 20


def test_promise_06_rows_of_a_user_who_is_forgotten_while_they_are_drawn_are_left_nowhere(shop: Shop) -> None:
    shop.fill(0, 20)
    job = shop.job()

    class Forgetful(Rendering):
        """Forgets somebody once the rows are drawn: it is asked for their lengths then."""

        def ids(self, *args: Any, **more: Any) -> tuple[list[int], list[int]]:
            forget_user(shop.db, Routes(shop.db), "u3", "anna", run_root=shop.settings.run_root)
            return super().ids(*args, **more)

    slow = Forgetful(tokenizer())
    assert isinstance(
        refused(lambda: snapshot(shop.db, shop.settings, job, slow, shop.folder(job))), StaleWorker
    )
    assert not [file for file in shop.folder(job).rglob("*") if file.is_file()]
    assert Datasets(shop.db).of_job(job.id) is None


# -- from files ----------------------------------------------------------------------------------------
def demonstrations(count: int, first: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {number}", "completion": f"answer {number}", "user": f"u{number}", **more}
        for number in range(first, first + count)
    ]


def test_a_run_from_files_learns_from_one_and_holds_out_the_other(shop: Shop) -> None:
    source = {"kind": "file", "training_file": shop.file(demonstrations(9)), "validation_file": None}
    alone = shop.job(source=source)
    made = shop.snapshot(alone)
    assert (made.method, made.report["split"]["by"], len(made.train), len(made.held_out)) == (
        "supervised",
        "unit",
        6,
        3,
    )
    shop.version(alone)
    checked = {**source, "validation_file": shop.file(demonstrations(4, 9))}
    made = shop.snapshot(shop.job(source=checked))
    assert (made.report["split"]["by"], len(made.train), len(made.held_out)) == ("validation file", 9, 4)


def test_a_file_that_is_gone_or_bad_is_an_error_of_its_own(shop: Shop) -> None:
    gone = shop.job(source={"kind": "file", "training_file": "file-gone"})
    error = refused(lambda: shop.snapshot(gone))
    assert isinstance(error, NotFound)
    assert error.code == "file_not_found"
    shop.version(gone)
    bad = shop.job(source={"kind": "file", "training_file": shop.file([{"prompt": 5}])})
    assert isinstance(refused(lambda: shop.snapshot(bad)), RowError)


def test_the_jobs_hyperparameters_seed_and_method_hold(shop: Shop) -> None:
    shop.fill(0, 20)
    job = shop.job(hyperparameters={"max_length": 120}, seed=3, method="supervised")
    report = shop.snapshot(job).report
    assert (report["max_length"], report["seed"], report["method"]["why"]) == (120, 3, "asked for")


# -- runs that go on from each other -------------------------------------------------------------------
def test_promise_09_over_runs_nobody_is_both_learned_from_and_held_out(shop: Shop) -> None:
    start: str | None = None
    learned: list[Row] = []
    for number in range(4):
        shop.fill(20 * number, 20)
        job = shop.job(start_from=start, adapter=f"support-{number}")  # each would hold out others
        made = shop.snapshot(job)
        assert made.report["replay"]["earlier"] == len(ids(learned))
        learned += made.train
        assert made.held_out
        assert not units(learned) & units(made.held_out)
        start = shop.version(job)


def test_a_version_has_learned_what_those_before_it_have(shop: Shop) -> None:
    shop.fill(0, 20)
    job = shop.job(start_from=shop.imported())
    first = shop.snapshot(job)
    ref = shop.version(job)
    shop.fill(20, 20)
    job = shop.job(start_from=ref)
    second = shop.snapshot(job)
    rows, gone = earlier_rows(shop.db, shop.settings, shop.version(job))
    assert ids(rows) == ids(first.train) | ids(second.train)
    assert gone == set()


def test_without_a_start_or_the_runs_folder_nothing_was_learned(shop: Shop) -> None:
    assert earlier_rows(shop.db, shop.settings, None) == ([], set())
    assert earlier_rows(shop.db, shop.settings, shop.imported()) == ([], set())
    assert isinstance(refused(lambda: earlier_rows(shop.db, shop.settings, "support@9")), NotFound)


def test_promise_06_deleted_completions_are_not_learned_from_again(shop: Shop) -> None:
    shop.fill(0, 20)
    job = shop.job()
    first = shop.snapshot(job)
    ref = shop.version(job)
    behind = {each.completion_id for each in first.train if each.completion_id is not None}
    for id in behind:
        Completions(shop.db).delete(id, None)
    rows, gone = earlier_rows(shop.db, shop.settings, ref)
    assert (ids(rows), gone) == (ids(first.train), behind)
    shop.fill(100, 20)
    made = shop.snapshot(shop.job(start_from=ref))
    assert not ids(made.train) & ids(first.train)
    assert made.report["replay"]["taken"] == 0


def _lines(file: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in file.read_bytes().splitlines()]
