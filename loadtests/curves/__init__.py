"""How latency and throughput change with the streams at once, and with the adapters that are asked at once.

    python -m loadtests.curves --engine real                           # Burnish with an engine of its own, both curves
    python -m loadtests.curves --url http://127.0.0.1:8000 --model NAME --levels 1,8,64
    python -m loadtests.curves --url http://127.0.0.1:8000 --model NAME --levels none --adapters 0,1,4,8,16
    python -m loadtests.curves --engine fake                           # shows that the harness works, and nothing else
    python -m loadtests.curves --from FILE                             # the tables again

A closed loop: so many callers, each of which asks again as soon as it is answered, with prompts and answers of
log-normal lengths from the seed. A level is measured for --seconds from when every caller has had its first answer;
whoever asks within that time is waited for; a slow engine gets up to four times as long. Tokens count within the time only. The inter-token latency is the gap
between two reads of an answer that brought tokens; a stream's rate is its tokens after the first over the time that
they took.

The adapters' curve has random LoRAs of full size (--rank, all linear modules), which are put into Burnish over its
API. N adapters: the callers ask them in turn. An engine has slots for `max_loras` of them at once, so that with more
the requests of some have to wait until others have ended: that is the cliff which the curve looks for.

    points       from the answers of a level to its numbers (pure)
    measure      a level, a curve: what is asked, and of whom
    adapters     random LoRAs, written and put into Burnish
    table        Markdown (pure)
    __main__     the command line

Any OpenAI-compatible URL will do for the first curve. Knows nothing of what is inside a server.
"""
