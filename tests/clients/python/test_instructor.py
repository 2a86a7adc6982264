"""Instructor: typed answers by tools, by JSON schema and by the Responses API."""

from typing import Literal

import instructor
import openai
import pytest
from conftest import Gateway
from instructor.core import InstructorRetryException
from pydantic import BaseModel

ASK = [{"role": "user", "content": "The ticket says: the door is red and broken."}]
MODES = [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA]


class Ticket(BaseModel):
    """A ticket about a door."""

    colour: Literal["red", "blue"]
    broken: bool


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_create_gives_the_class(client: openai.OpenAI, gateway: Gateway, mode: instructor.Mode) -> None:
    ticket = instructor.from_openai(client, mode=mode).chat.completions.create(
        model=gateway.model, messages=ASK, response_model=Ticket, max_tokens=60, temperature=0, max_retries=0
    )
    assert isinstance(ticket, Ticket)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
async def test_async_create_gives_the_class(
    aclient: openai.AsyncOpenAI, gateway: Gateway, mode: instructor.Mode
) -> None:
    ticket = await instructor.from_openai(aclient, mode=mode).chat.completions.create(
        model=gateway.adapter,
        messages=ASK,
        response_model=Ticket,
        max_tokens=60,
        temperature=0,
        max_retries=0,
    )
    assert isinstance(ticket, Ticket)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_partial_answers_are_streamed(client: openai.OpenAI, gateway: Gateway, mode: instructor.Mode) -> None:
    partials = list(
        instructor.from_openai(client, mode=mode).chat.completions.create_partial(
            model=gateway.model,
            messages=ASK,
            response_model=Ticket,
            max_tokens=60,
            temperature=0,
            max_retries=0,
        )
    )
    assert partials[-1].colour in ("red", "blue")
    assert partials[-1].broken in (True, False)


def test_create_with_completion_gives_the_answer_too(client: openai.OpenAI, gateway: Gateway) -> None:
    _, answer = instructor.from_openai(client).chat.completions.create_with_completion(
        model=gateway.model, messages=ASK, response_model=Ticket, max_tokens=60, temperature=0, max_retries=0
    )
    assert answer.model == gateway.model
    assert answer.usage.total_tokens > 0


def test_responses_tools(client: openai.OpenAI, gateway: Gateway) -> None:
    ticket = instructor.from_openai(client, mode=instructor.Mode.RESPONSES_TOOLS).responses.create(
        model=gateway.model,
        input="The door is red and broken.",
        response_model=Ticket,
        max_output_tokens=60,
        temperature=0,
        max_retries=0,
    )
    assert isinstance(ticket, Ticket)


def test_a_refusal_reaches_the_caller(client: openai.OpenAI) -> None:
    with pytest.raises((openai.NotFoundError, InstructorRetryException)) as caught:
        instructor.from_openai(client).chat.completions.create(
            model="gpt-nope", messages=ASK, response_model=Ticket, max_retries=0
        )
    assert "gpt-nope" in str(caught.value)
