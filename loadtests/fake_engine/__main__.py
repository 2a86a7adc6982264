"""The command line: listen, say where in one line of JSON, serve until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys

import uvloop

from loadtests.fake_engine.engine import Engine
from loadtests.fake_engine.wire import Connection


def main() -> None:
    """`python -m loadtests.fake_engine`."""
    options = _options()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.fake_engine",
        description="A fake vLLM with delays and faults. Prints one line of JSON when it listens.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--uds", help="listen on this Unix socket instead")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the base model's served name")
    parser.add_argument("--max-loras", type=int, default=4, help="distinct adapters in use at once")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0, help="another seed is another base model's weights")
    parser.add_argument("--api-key", help="ask for this bearer token under /v1/, as vLLM does")
    parser.add_argument(
        "--embedding-size", type=int, default=0, help="numbers of an embedding; 0: it has none (default)"
    )
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when standard input closes")
    return parser.parse_args()


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    engine = Engine(
        options.model,
        max_loras=options.max_loras,
        max_model_len=options.max_model_len,
        seed=options.seed,
        api_key=options.api_key,
        embedding_size=options.embedding_size,
    )

    def connection() -> Connection:
        engine.stats.connections += 1
        return Connection(engine.handle)

    if options.uds:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(options.uds)
        server = await loop.create_unix_server(connection, options.uds, backlog=2048)
        place = {"uds": options.uds}
    else:
        server = await loop.create_server(connection, options.host, options.port, backlog=2048)
        place = {"port": server.sockets[0].getsockname()[1]}
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    if options.exit_with_stdin:
        loop.add_reader(sys.stdin.fileno(), stopped.set)
    print(json.dumps({**place, "pid": os.getpid()}), flush=True)
    await stopped.wait()
    server.close()


if __name__ == "__main__":
    main()
