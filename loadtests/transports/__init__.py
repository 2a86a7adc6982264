"""What a relay's HTTP server and client cost in CPU: the measurement by which Burnish chose its own.

    python -m loadtests.transports [--requests N] [--rounds 3] [--json FILE]

Every row is one real process on a loopback port, between the same load and the same fake engine: four prototypes
that do the least a relay must (parse the body, rewrite `model`, relay the answer, read its usage), then Burnish
itself, which does everything it promises. All of them live through the whole run and are measured in turn, round
by round, so that a neighbour on the machine disturbs all alike. The figure to hold on to is CPU time (user and
system, all threads) for each request answered and each event streamed; requests per second are bounded by load
and engine, which share a core. Streams are paced, each event on its own; their figure includes the request.

    prototypes  two servers and two clients, one process for each pair
    load        keep-alive connections that ask again as soon as they are answered
    processes   relays started on a core of their own, and their CPU clocks
    __main__    the rounds and the table

Speaks HTTP to Burnish, and knows nothing of what is inside it.
"""
