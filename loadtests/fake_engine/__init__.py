"""A fake vLLM: an HTTP server with vLLM 0.32's OpenAI surface, no model, and faults on demand.

    python -m loadtests.fake_engine --port 0 --model smollm2-135m-instruct

`process.FakeEngine` runs one as a child process for tests and load tests. What the parts own:

    wire        HTTP/1.1 on a socket: parsing, keep-alive, chunks, a client that leaves
    engine      which request gets which answer; the adapters that are loaded
    generation  a request read into what will be said, and with which tokens
    language    the words and log-probabilities, a pure function of the weights' digest
    chat, completions, responses, messages, embeddings   vLLM's JSON and events, one file an endpoint
    metrics     vLLM's families for Prometheus, of what was really counted
    playback    an answer sent in its own time, or spoilt by a fault
    settings    the delays, the faults and the counts that tests read
    errors      vLLM's error bodies
    process     the handle: start, stop, kill, restart

Left out, because only the real engine can show them: tools, structured output, sampling, truncation.
Speaks HTTP only; knows neither the gateway nor the registry.
"""
