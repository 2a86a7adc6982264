"""What batch lines and training do to interactive requests on the same machine, with the priorities on and off.

    python -m loadtests.coserving [--seconds 60] [--load 0.5] [--rounds 3] [--json FILE]
    python -m loadtests.coserving --from FILE                # the table again
    python -m loadtests.coserving --scenarios alone,batch    # some of it
    python -m loadtests.coserving --engine fake --rate 5     # shows that the harness works, and nothing else

One trace of interactive requests (streamed chat; Poisson arrivals; log-normal prompts and answers; all from the seed)
is played in every scenario:

    alone          nobody else
    batch          beside a batch that never runs out of lines
    training       beside a training run
    both           beside a batch and a training run
    batch-off, training-off, both-off
                   the same with `[priority] enabled = false` and `[training] nice = false`
    batch-only, training-only
                   no interactive request: what the others would do with the machine to themselves

The trace is open loop: a request is sent at its time, however many before it wait, and its time to first token counts
from that time, so that a stall is seen by all that it would have hit (no coordinated omission). The inter-token
latency is the gap between two reads of an answer that brought tokens: tokens that came together are one chunk. A
request is *in target* where it was answered whole, its first token came within the target, and so did 95 of 100 of its
own gaps. A request that failed is in no target, and one without a first token counts as one that took for ever.

Without --rate the trace has a share (--load) of the rate at which the engine is saturated, measured beforehand.
Without both targets they are 1.5 times what 99 of 100 requests of the trace have alone, also measured beforehand, rounded
up: the gateway is started with them, since its priorities act by them. Everything is measured in turn, round by round, with one server at
a time; the cells are medians of the rounds, with the least and the most.

    background   a batch and a training run, over HTTP
    scenarios    who runs beside whom, and the calibration
    results      what a run has measured, as JSON
    table        shares, medians, Markdown (pure)
    __main__     the command line and the rounds

The requests are of `loadtests.workload`, the client is `loadtests.stream`, the processes are of `loadtests.servers`.

Speaks HTTP to Burnish, and knows nothing of what is inside it.
"""
