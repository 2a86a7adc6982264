"""A judge's question and how its word counts: two answers, asked twice with the sides swapped.

Pure but for its prompt, which is a file of its own (prompts/judge.txt). A judge that only likes what stands first says
nothing then: its two words cancel out (Zheng et al. 2023, "Judging LLM-as-a-Judge", section 3.4). Decides nothing: its
word is for the report.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from string import Template
from typing import Any

from adapters.rows import Prompt, Row
from trainer.measures import text_of

PROMPT = Path(__file__).parent / "prompts" / "judge.txt"
WORD = re.compile(r"\b(A|B|TIE)\b")
MAX_TOKENS = 16


def question_of(row: Row, first: str, second: str) -> dict[str, Any]:
    """The body of a chat request, but for `model`."""
    text = _template().substitute(conversation=_shown(row.prompt), first=first, second=second)
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": MAX_TOKENS}


def wins_of(asked: Sequence[tuple[str, bool]], words: Sequence[str | None]) -> dict[str, float]:
    """The candidate's share by row id: 1.0 if both words are for it, 0.5 for a tie or two that contradict each other.

    `asked` says of each word whether the candidate stood first. A row without two clear words is left out.
    """
    shares: dict[str, list[float]] = defaultdict(list)
    for (id, is_first), word in zip(asked, words, strict=True):
        found = None if word is None else _verdict(word)
        if found is not None:
            shares[id].append(0.5 if found == "TIE" else float((found == "A") is is_first))
    return {id: sum(share) / 2 for id, share in shares.items() if len(share) == 2}


def _verdict(word: str) -> str | None:
    """None where both answers are named ("a" may be the article)."""
    found = set(WORD.findall(word.upper()))
    return "TIE" if "TIE" in found else found.pop() if len(found) == 1 else None


@lru_cache(maxsize=1)
def _template() -> Template:
    return Template(PROMPT.read_text(encoding="utf-8"))


def _shown(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {text_of(message)}" for message in prompt)
