// The Vercel AI SDK against the gateway: as "OpenAI" (chat, responses, completion) and as "OpenAI-compatible".

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

import { adapter, apiKey, baseURL, model } from "./gateway.mjs";

const openai = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({
  name: "burnish",
  baseURL,
  apiKey,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const providers = {
  "openai chat": (name) => openai.chat(name),
  "openai responses": (name) => openai.responses(name),
  "openai-compatible": (name) => compatible.chatModel(name),
};
const short = { maxOutputTokens: 16, temperature: 0, maxRetries: 0 };
const Mood = z.object({ mood: z.enum(["good", "bad"]) });
const City = z.object({ city: z.enum(["Paris", "Rome"]) });

for (const [name, provider] of Object.entries(providers)) {
  describe(name, () => {
    test("generates text and counts it", async () => {
      const { text, usage, response } = await generateText({ model: provider(model), prompt: "Say hello.", ...short });
      assert.ok(text);
      assert.ok(usage.outputTokens > 0);
      assert.equal(response.modelId, model);
    });

    test("streams text and its usage", async () => {
      const errors = [];
      const result = streamText({
        model: provider(adapter),
        prompt: "Say hello.",
        ...short,
        onError: ({ error }) => errors.push(error),
      });
      let text = "";
      for await (const piece of result.textStream) text += piece;
      assert.deepEqual(errors, []);
      assert.ok(text);
      assert.ok((await result.usage).outputTokens > 0);
      assert.ok(["stop", "length"].includes(await result.finishReason));
    });

    test("calls a forced tool", async () => {
      const { toolCalls } = await generateText({
        model: provider(model),
        prompt: "Weather in Paris?",
        tools: { weather: tool({ inputSchema: City }) },
        toolChoice: "required",
        ...short,
        maxOutputTokens: 100,
      });
      assert.equal(toolCalls[0].toolName, "weather");
      assert.ok(["Paris", "Rome"].includes(toolCalls[0].input.city));
    });

    test("streams a forced tool call, runs it and goes on", async () => {
      const errors = [];
      const result = streamText({
        model: provider(model),
        prompt: "Weather in Paris?",
        tools: { weather: tool({ inputSchema: City, execute: ({ city }) => `sunny in ${city}` }) },
        toolChoice: "required",
        prepareStep: ({ stepNumber }) => (stepNumber > 0 ? { toolChoice: "none" } : {}),
        stopWhen: stepCountIs(2),
        ...short,
        maxOutputTokens: 60,
        onError: ({ error }) => errors.push(error),
      });
      await result.consumeStream();
      assert.deepEqual(errors, []);
      const steps = await result.steps;
      assert.match(steps[0].toolResults[0].output, /sunny in (Paris|Rome)/);
      assert.equal(steps.length, 2);
    });

    test("generates an object", async () => {
      const { output } = await generateText({
        model: provider(model),
        prompt: "How are you?",
        output: Output.object({ schema: Mood }),
        ...short,
        maxOutputTokens: 40,
      });
      assert.ok(["good", "bad"].includes(output.mood));
    });

    test("raises a refusal with its status and OpenAI's body", async () => {
      const error = await generateText({ model: provider("gpt-nope"), prompt: "Hi.", ...short }).then(
        () => assert.fail("was not refused"),
        (caught) => caught,
      );
      assert.ok(APICallError.isInstance(error), error);
      assert.equal(error.statusCode, 404);
      assert.equal(error.isRetryable, false);
      assert.equal(JSON.parse(error.responseBody).error.code, "model_not_found");
      assert.equal(error.message, JSON.parse(error.responseBody).error.message, "the SDK could read the body");
    });
  });
}

test("openai completion", async () => {
  const { text } = await generateText({ model: openai.completion(model), prompt: "One, two,", ...short });
  assert.ok(text);
});
