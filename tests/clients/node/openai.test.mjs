// OpenAI's client for Node against the gateway: what a caller sees, and which error class a refusal becomes.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { adapter, apiKey, baseURL, model, needsKey } from "./gateway.mjs";

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: "Say hello." }];
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: {
      type: "object",
      properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};
const Mood = z.object({ mood: z.enum(["good", "bad"]) });

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

/** The error that `promise` ends in, which must be of class `kind` and hold OpenAI's fields. */
async function refusal(promise, kind) {
  const error = await promise.then(
    () => assert.fail("was not refused"),
    (caught) => caught,
  );
  assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
  assert.ok(error.requestID, "x-request-id is there");
  for (const key of ["message", "type", "param", "code"]) assert.ok(key in error.error, `${key} in ${JSON.stringify(error.error)}`);
  assert.ok(error.code === null || typeof error.code === "string", `code is no number: ${error.code}`);
  return error;
}

describe("models", () => {
  test("are listed and retrieved by name", async () => {
    const ids = (await collect(client.models.list())).map((each) => each.id);
    assert.ok(ids.includes(model) && ids.includes(adapter), ids.join());
    for (const name of [model, adapter]) assert.equal((await client.models.retrieve(name)).id, name);
  });

  test("that are unknown are not found", async () => {
    const error = await refusal(client.models.retrieve("org/nope:1"), OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
  });
});

describe("chat", () => {
  for (const name of [model, adapter]) {
    test(`answers as ${name}`, async () => {
      const answer = await client.chat.completions.create({ model: name, messages, max_tokens: 8, temperature: 0 });
      assert.equal(answer.model, name);
      assert.ok(answer.choices[0].message.content);
      assert.equal(answer.choices[0].message.refusal, null);
      assert.equal(answer.choices[0].logprobs, null);
      assert.ok(answer._request_id);
      assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    });
  }

  test("streams the same words, each chunk with the model asked for", async () => {
    const asked = { model: adapter, messages, max_tokens: 8, temperature: 0 };
    const plain = await client.chat.completions.create(asked);
    const chunks = await collect(await client.chat.completions.create({ ...asked, stream: true }));
    assert.equal(chunks.map((c) => c.choices[0].delta.content ?? "").join(""), plain.choices[0].message.content);
    assert.deepEqual([...new Set(chunks.map((c) => c.model))], [adapter]);
    assert.ok(chunks.every((c) => !("usage" in c)));
  });

  test("shows usage in the last chunk when asked, null before", async () => {
    const chunks = await collect(
      await client.chat.completions.create({
        model,
        messages,
        max_tokens: 3,
        stream: true,
        stream_options: { include_usage: true },
      }),
    );
    const last = chunks.pop();
    assert.deepEqual(last.choices, []);
    assert.equal(last.usage.completion_tokens, 3);
    assert.ok(chunks.every((c) => c.usage === null));
  });

  test("gives logprobs with both lists", async () => {
    const answer = await client.chat.completions.create({ model, messages, max_tokens: 2, logprobs: true, top_logprobs: 2 });
    assert.equal(answer.choices[0].logprobs.content.length, 2);
    assert.equal(answer.choices[0].logprobs.refusal, null);
  });

  test("streams a forced tool call through the client's accumulator", async () => {
    const runner = client.chat.completions.stream({
      model,
      messages,
      tools: [weather],
      tool_choice: "required",
      max_tokens: 100,
      temperature: 0,
    });
    const final = await runner.finalChatCompletion();
    assert.equal(final.choices[0].finish_reason, "tool_calls");
    const [call] = final.choices[0].message.tool_calls;
    assert.equal(call.function.name, "get_weather");
    assert.ok(["Paris", "Rome"].includes(JSON.parse(call.function.arguments).city));
  });

  test("adds streamed arguments up as strings", async () => {
    const stream = await client.chat.completions.create({
      model,
      messages,
      tools: [weather],
      tool_choice: { type: "function", function: { name: "get_weather" } },
      max_tokens: 60,
      temperature: 0,
      stream: true,
    });
    let text = "";
    for await (const chunk of stream)
      for (const call of chunk.choices[0]?.delta.tool_calls ?? []) text += call.function.arguments; // null or undefined would spoil it
    assert.ok(["Paris", "Rome"].includes(JSON.parse(text).city), text);
  });

  test("runs a tool and takes its answer back", async () => {
    let ran = 0;
    const runner = client.chat.completions.runTools(
      {
        model,
        messages,
        max_tokens: 60,
        temperature: 0,
        tool_choice: { type: "function", function: { name: "get_weather" } },
        tools: [{ type: "function", function: { ...weather.function, parse: JSON.parse, function: () => (ran++, "sunny") } }],
      },
      { maxChatCompletions: 1 },
    );
    await runner.done();
    assert.equal(ran, 1);
  });

  test("parses structured output", async () => {
    const answer = await client.chat.completions.parse({
      model,
      messages,
      max_tokens: 40,
      temperature: 0,
      response_format: zodResponseFormat(Mood, "mood"),
    });
    assert.ok(["good", "bad"].includes(answer.choices[0].message.parsed.mood));
  });

  test("stops when the caller aborts", async () => {
    const stream = await client.chat.completions.create({
      model,
      messages,
      max_tokens: 400,
      stream: true,
      ignore_eos: true,
    });
    let seen = 0;
    for await (const _ of stream) if (++seen === 3) stream.controller.abort();
    assert.ok(seen < 100, `${seen} chunks after the abort`);
  });
});

describe("completions", () => {
  test("plain and streamed", async () => {
    const asked = { model, prompt: "One, two,", max_tokens: 4, temperature: 0 };
    const plain = await client.completions.create(asked);
    const chunks = await collect(await client.completions.create({ ...asked, stream: true }));
    assert.equal(chunks.map((c) => c.choices[0].text).join(""), plain.choices[0].text);
    assert.equal(plain.model, model);
  });
});

describe("responses", () => {
  test("are made, kept, listed and deleted", async () => {
    const made = await client.responses.create({ model: adapter, input: "Hi.", max_output_tokens: 16, temperature: 0 });
    assert.equal(made.model, adapter);
    assert.ok(made.output_text);
    assert.equal((await client.responses.retrieve(made.id)).output_text, made.output_text);
    const [item] = await collect(client.responses.inputItems.list(made.id));
    assert.equal(item.content[0].text, "Hi.");
    await client.responses.delete(made.id);
    await refusal(client.responses.retrieve(made.id), OpenAI.NotFoundError);
  });

  test("go on from the one before", async () => {
    const first = await client.responses.create({ model, input: "I am Ada.", max_output_tokens: 16 });
    const second = await client.responses.create({
      model,
      input: "Who am I?",
      previous_response_id: first.id,
      max_output_tokens: 16,
    });
    assert.equal(second.previous_response_id, first.id);
    assert.ok(second.usage.input_tokens > first.usage.input_tokens);
  });

  test("stream through the client's accumulator, typed", async () => {
    const stream = client.responses.stream({
      model,
      input: "How are you?",
      max_output_tokens: 40,
      temperature: 0,
      text: { format: zodTextFormat(Mood, "mood") },
    });
    const kinds = (await collect(stream)).map((event) => event.type);
    assert.equal(kinds[0], "response.created");
    assert.equal(kinds.at(-1), "response.completed");
    assert.ok(["good", "bad"].includes((await stream.finalResponse()).output_parsed.mood));
  });
});

describe("refusals", () => {
  const chat = (wrong) => client.chat.completions.create({ model, messages, max_tokens: 2, ...wrong });

  for (const stream of [false, true]) {
    test(`unknown model is a NotFoundError (stream: ${stream})`, async () => {
      const error = await refusal(chat({ model: "gpt-nope", stream }), OpenAI.NotFoundError);
      assert.equal(error.code, "model_not_found");
      assert.equal(error.type, "invalid_request_error");
    });

    test(`a bad value is a BadRequestError with its param (stream: ${stream})`, async () => {
      assert.equal((await refusal(chat({ temperature: 3, stream }), OpenAI.BadRequestError)).param, "temperature");
      assert.equal((await refusal(chat({ messages: "hello", stream }), OpenAI.BadRequestError)).param, "messages");
    });
  }

  test("an unknown role names its place", async () => {
    const error = await refusal(chat({ messages: [{ role: "wizard", content: "hi" }] }), OpenAI.BadRequestError);
    assert.equal(error.param, "messages[0].role");
  });

  test("a missing model names the field", async () => {
    assert.equal((await refusal(chat({ model: undefined }), OpenAI.BadRequestError)).param, "model");
  });

  test("too long a conversation has OpenAI's code", async () => {
    const error = await refusal(chat({ messages: [{ role: "user", content: "word ".repeat(9000) }] }), OpenAI.BadRequestError);
    assert.equal(error.code, "context_length_exceeded");
    assert.equal(error.param, "messages");
  });

  test("embeddings of a chat model are refused", async () => {
    await refusal(client.embeddings.create({ model, input: "Hi." }), OpenAI.APIError);
  });

  test("a wrong key is an AuthenticationError", { skip: !needsKey && "the gateway needs no key" }, async () => {
    const stranger = new OpenAI({ baseURL, apiKey: "sk-wrong", maxRetries: 0 });
    const error = await refusal(stranger.chat.completions.create({ model, messages }), OpenAI.AuthenticationError);
    assert.equal(error.code, "invalid_api_key");
  });
});
