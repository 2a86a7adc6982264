"""All measurements that want a GPU, in one command within a time: a real vLLM, and Burnish before it.

    python -m loadtests.gpu --tokenizer DIR                      # Llama-3-8B's shape, random weights
    python -m loadtests.gpu --weights /models/Llama-3.1-8B-Instruct
    python -m loadtests.gpu --shape llama3.2-1b --stages coserving --tokenizer DIR
    python -m loadtests.gpu --engine fake --shape tiny --budget 120   # shows that it runs, and nothing else

For a machine with one GPU that is to be had for minutes: needs no network and no weights (a disk of 16 GB for theirs), and writes each result
to --out ($OUT, else the folder it runs in) as soon as it is there. A stage that fails is told of and the others go on;
what does not fit into --budget seconds any more is left out.

    concurrency   1 to 128 streams, through Burnish and at the engine itself, level by level
    adapters      0 to 16 adapters on 4 slots, through Burnish
    users         100 streams at once for longer; meanwhile what /metrics and /metrics/engines say
    batch         lines a second of a batch that has the engine to itself
    coserving     `loadtests.coserving`: people beside a batch and a training run

What the numbers mean where the weights are random: sizes and types are real, so the time that a token takes is; what
is said is noise.

    model        the shape as a folder: config.json, tokenizer, random weights
    engine       vLLM as a process, with plainer settings where it does not come up
    stages       the measurements
    report       the files that they leave
    __main__     the command line, and the order of things
"""
