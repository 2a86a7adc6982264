"""One training row, whatever it was drawn from, and the file formats that rows come in.

Pure: text in, rows or errors with line numbers out. Knows no database and no tokenizer. The formats, told line by
line from the fields that are there:

    {"messages", "tools"}                               OpenAI's fine-tuning chat format
    {"input", "preferred_output", "non_preferred_output"}   OpenAI's preference (DPO) format
    {"prompt", "chosen", "rejected"}                    preference, text or messages
    {"prompt", "completion", "label"}                   KTO: liked or not
    {"prompt", "completion"}                            text or messages
    {"instruction", "input", "output"}                  Alpaca
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, BinaryIO

import orjson

from adapters.errors import RowError
from adapters.messages import (
    Message,
    Problem,
    assistant_message,
    sound_answer,
    sound_messages,
    sound_tools,
    text_of,
    user_message,
    without_weight,
)

__all__ = [
    "Message",
    "Prompt",
    "Row",
    "RowError",
    "RowKind",
    "Split",
    "check_lines",
    "parse_training",
    "row_id",
    "user_digest",
]

Prompt = list[Message] | str
"""What was asked: the messages before the answer, or the raw text of /v1/completions (no chat template)."""

MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_PROBLEMS = 100

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class RowKind(StrEnum):
    DEMONSTRATION = "demonstration"  # `answer` is what should be said
    PREFERENCE = "preference"  # `answer` is better than `rejected`
    LABEL = "label"  # `answer` was given, and liked or not


class Split(StrEnum):
    TRAIN = "train"
    HELD_OUT = "held_out"


#: What each method learns from; any other word ("auto") takes every kind.
LEARNS_FROM = {"supervised": RowKind.DEMONSTRATION, "dpo": RowKind.PREFERENCE, "kto": RowKind.LABEL}
METHOD_OF = {kind: method for method, kind in LEARNS_FROM.items()}


@dataclass(frozen=True, slots=True)
class Row:
    """`answer` and `rejected` are assistant messages ({"role": "assistant", "content": …}), also where the prompt is text."""

    id: str  # row_<sha256 of the canonical content, 24 hex>
    kind: RowKind
    prompt: Prompt = field(hash=False)
    answer: Message = field(hash=False)
    rejected: Message | None = field(default=None, hash=False)
    liked: bool | None = None
    tools: list[Any] | None = field(default=None, hash=False)
    unit: str = ""  # whose voice; rows of one unit are never on both sides of the split
    key_id: str | None = None
    user: str | None = None
    completion_id: str | None = None
    feedback_id: str | None = None
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class LineProblem:
    line: int  # 1 is the first; 0 where it is the file as a whole
    message: str
    param: str | None = None

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message


@dataclass(frozen=True, slots=True)
class Checked:
    """What a look through all lines of a file has found."""

    problems: tuple[LineProblem, ...]  # the first MAX_PROBLEMS
    problem_count: int
    lines: int
    rows: Counter[RowKind]

    @property
    def method(self) -> str | None:
        """The one method that learns from such rows; None where the kinds are mixed."""
        return METHOD_OF[next(iter(self.rows))] if len(self.rows) == 1 else None

    def explain(self, shown: int = 5) -> str:
        """The first problems in one line, and how many there are."""
        told = "; ".join(str(problem) for problem in self.problems[:shown])
        more = self.problem_count - min(shown, len(self.problems))
        return f"{told}; and {more} more" if more else told


def row_id(
    kind: RowKind,
    prompt: Prompt,
    answer: Message,
    rejected: Message | None = None,
    liked: bool | None = None,
    tools: list[Any] | None = None,
) -> str:
    """The same content has the same id, in whatever order its fields were written and wherever it was drawn from."""
    content = [kind.value, prompt, answer, rejected, liked, tools]
    return f"row_{_digest(content)}"


def user_digest(user: str) -> str:
    """What is kept of an end user's name where the name itself must not stand: 24 hex digits of its SHA-256."""
    return hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def check_lines(lines: Iterable[bytes], method: str = "auto") -> list[LineProblem]:
    """All bad lines, at most MAX_PROBLEMS of them."""
    return list(examine(lines, method).problems)


def examine(lines: Iterable[bytes], method: str = "auto") -> Checked:
    """Looks through all lines, and remembers the first problems alone, so that a file of any size will do."""
    problems: list[LineProblem] = []
    count = number = 0
    rows: Counter[RowKind] = Counter()
    for number, line in enumerate(lines, 1):
        try:
            rows.update(row.kind for row in _rows(line, number, method))
        except Problem as problem:
            count += 1
            if count <= MAX_PROBLEMS:
                problems.append(LineProblem(number, problem.message, problem.param))
    if not rows and not count:
        count, problems = 1, [LineProblem(0, "the file holds no rows")]
    return Checked(tuple(problems), count, number, rows)


def parse_training(text_lines: Iterable[bytes], method: str = "auto") -> Iterator[Row]:
    """The rows of a file, in order; blank lines hold none. Raises RowError for the first bad line."""
    for number, line in enumerate(text_lines, 1):
        try:
            yield from _rows(line, number, method)
        except Problem as problem:
            raise RowError(f"Line {number}: {problem.message}.", param=problem.param) from None


def bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is too long only so much that the parser sees that it is."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES + 1)


def _rows(line: bytes, number: int, method: str) -> list[Row]:
    """The rows of one line: one, none, or one for each answer of a conversation. Raises Problem."""
    value = _value(line, number)
    if value is None:
        return []
    try:
        rows = _parse(value)
    except orjson.JSONEncodeError:
        raise Problem(None, "the row is nested too deeply") from None
    wanted = LEARNS_FROM.get(method)
    if wanted is not None and rows[0].kind is not wanted:
        raise Problem(
            None,
            f"the row is a {rows[0].kind.value}, which method '{method}' cannot learn from; "
            f"it learns from rows of kind {wanted.value} (this one is for method '{METHOD_OF[rows[0].kind]}')",
        )
    return rows


def _value(line: bytes, number: int) -> dict[str, Any] | None:
    if len(line) > MAX_LINE_BYTES:
        raise Problem(None, f"the line is longer than {MAX_LINE_BYTES} bytes")
    if number == 1:
        line = line.removeprefix(BYTE_ORDER_MARK)
        if line.startswith(UTF_16_MARKS):
            raise Problem(None, "the file is UTF-16; write it as UTF-8")
    if not line.strip():
        return None
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise Problem(None, _json_problem(line, number, error)) from None
    if isinstance(value, list) and number == 1:
        raise Problem(None, ARRAY)
    if not isinstance(value, dict):
        raise Problem(None, "the line must be a JSON object")
    return value


ARRAY = "the file is a JSON array; write JSONL: one object a line, without brackets and commas around them"


def _json_problem(line: bytes, number: int, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as problem:
        return f"the line is not UTF-8 (byte {problem.start + 1})"
    if number == 1 and line.lstrip().startswith(b"["):
        return ARRAY
    return f"the line is not JSON ({error.msg}, column {error.colno})"


def _parse(value: dict[str, Any]) -> list[Row]:
    """By the fields that are there, the most telling first: some data sets carry more than they need."""
    if "preferred_output" in value or "preferred_completion" in value:
        return [_openai_preference(value)]
    if "chosen" in value or "rejected" in value:
        return [_preference(value)]
    if "label" in value and "completion" in value:
        return [_label(value)]
    if "messages" in value:
        return _conversation(value)
    if "instruction" in value:
        return [_alpaca(value)]
    if "prompt" in value or "completion" in value:
        return [_prompt_completion(value)]
    found = ", ".join(repr(name[:40]) for name in list(value)[:8]) or "none"
    raise Problem(
        None,
        "no format has these fields: "
        + found
        + "; write `messages`, or `prompt` with `completion` (and `label`) "
        "or with `chosen` and `rejected`, or `instruction` with `output`",
    )


def _conversation(value: dict[str, Any]) -> list[Row]:
    """A row for each assistant message that is not of weight 0: what was before it is its prompt."""
    messages = sound_messages(value["messages"], "messages")
    last = len(messages) - 1
    if messages[last]["role"] != "assistant":
        where = f"messages[{last}].role"
        raise Problem(
            where, f"`{where}` is '{messages[last]['role']}': the last message must be the assistant's"
        )
    tools = sound_tools(value.get("tools"))
    _check_flag(value, "parallel_tool_calls")
    plain = [without_weight(message) for message in messages]
    learned = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight") != 0 and index > 0
    ]
    if not learned:
        raise Problem(
            "messages", "`messages` has no answer to learn: an assistant message after another, of weight 1"
        )
    return [_row(value, RowKind.DEMONSTRATION, plain[:index], plain[index], tools=tools) for index in learned]


def _alpaca(value: dict[str, Any]) -> Row:
    asked = text_of(value["instruction"], "instruction")
    more = value.get("input")
    if more is not None and not isinstance(more, str):
        raise Problem("input", "`input` must be a string")
    if more and more.strip():
        asked = f"{asked}\n\n{more}"
    answer = assistant_message(text_of(value.get("output"), "output"))
    prompt = _prompt({**value, "prompt": asked})
    if isinstance(value.get("system"), str) and value["system"].strip() and isinstance(prompt, list):
        prompt = [{"role": "system", "content": value["system"]}, *prompt]
    return _row(value, RowKind.DEMONSTRATION, prompt, answer)


def _prompt_completion(value: dict[str, Any]) -> Row:
    prompt, answer = _prompt(value), sound_answer(value.get("completion"), "completion")
    return _row(value, RowKind.DEMONSTRATION, prompt, answer, tools=sound_tools(value.get("tools")))


def _label(value: dict[str, Any]) -> Row:
    liked = value["label"]
    if not isinstance(liked, bool):
        raise Problem("label", "`label` must be true or false")
    prompt, answer = _prompt(value), sound_answer(value["completion"], "completion")
    return _row(value, RowKind.LABEL, prompt, answer, liked=liked, tools=sound_tools(value.get("tools")))


def _openai_preference(value: dict[str, Any]) -> Row:
    asked = value.get("input")
    if not isinstance(asked, dict):
        raise Problem("input", "`input` must be an object with messages")
    prompt = [without_weight(message) for message in sound_messages(asked.get("messages"), "input.messages")]
    good, bad = (
        next((name for name in names if name in value), names[0])
        for names in (
            ("preferred_output", "preferred_completion"),
            ("non_preferred_output", "non_preferred_completion"),
        )
    )
    answers = _different(sound_answer(value.get(good), good), sound_answer(value.get(bad), bad), bad)
    _check_flag(asked, "parallel_tool_calls")
    return _row(value, RowKind.PREFERENCE, prompt, *answers, tools=sound_tools(asked.get("tools")))


def _preference(value: dict[str, Any]) -> Row:
    """`chosen` and `rejected` are answers, or whole conversations that begin with the prompt."""
    chosen, rejected = (_turns(value.get(name), name) for name in ("chosen", "rejected"))
    prompt = _prompt(value) if "prompt" in value else _common_beginning(chosen, rejected)
    before = len(prompt) if isinstance(prompt, list) else 0
    good, bad = (
        sound_answer(turns[before:] if before and turns[:before] == prompt else turns, name)
        for turns, name in ((chosen, "chosen"), (rejected, "rejected"))
    )
    tools = sound_tools(value.get("tools"))
    return _row(value, RowKind.PREFERENCE, prompt, *_different(good, bad, "rejected"), tools=tools)


def _turns(value: Any, where: str) -> list[Message]:
    if isinstance(value, list):
        return [without_weight(message) for message in sound_messages(value, where)]
    return [sound_answer(value, where)]


def _common_beginning(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    both = list(zip(chosen, rejected, strict=False))
    length = next((index for index, (good, bad) in enumerate(both) if good != bad), len(both) - 1)
    if length < 1:
        raise Problem(
            "prompt", "`prompt` is missing, and `chosen` and `rejected` do not begin with the same messages"
        )
    return chosen[:length]


def _different(good: Message, bad: Message, where: str) -> tuple[Message, Message]:
    if good == bad:
        raise Problem(where, f"`{where}` is the same as the answer that is preferred to it")
    return good, bad


def _prompt(value: dict[str, Any]) -> Prompt:
    """Messages; text is what a user says, unless the row says that it is raw."""
    _check_flag(value, "raw")
    prompt = value.get("prompt")
    if isinstance(prompt, list):
        if value.get("raw"):
            raise Problem("raw", "`raw` goes with a prompt that is text")
        return [without_weight(message) for message in sound_messages(prompt, "prompt")]
    if prompt is None:
        raise Problem("prompt", "`prompt` is missing")
    text = text_of(prompt, "prompt")
    return text if value.get("raw") else [user_message(text)]


def _check_flag(value: dict[str, Any], name: str) -> None:
    if not isinstance(value.get(name, False), bool):
        raise Problem(name, f"`{name}` must be true or false")


def _row(
    value: dict[str, Any],
    kind: RowKind,
    prompt: Prompt,
    answer: Message,
    rejected: Message | None = None,
    *,
    liked: bool | None = None,
    tools: list[Any] | None = None,
) -> Row:
    user = value.get("user")
    if user is not None and not isinstance(user, str):
        raise Problem("user", "`user` must be a string")
    return Row(
        id=row_id(kind, prompt, answer, rejected, liked, tools),
        kind=kind,
        prompt=prompt,
        answer=answer,
        rejected=rejected,
        liked=liked,
        tools=tools,
        unit=f"user:{user}" if user else f"conversation:{_digest(_beginning(prompt))}",
        user=user or None,
    )


def _beginning(prompt: Prompt) -> Prompt:
    """Up to the first thing that the user said: rows of one conversation begin alike."""
    if isinstance(prompt, str):
        return prompt
    first = next((index for index, message in enumerate(prompt) if message["role"] == "user"), len(prompt))
    return prompt[: first + 1]


def _digest(content: Any) -> str:
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:24]
