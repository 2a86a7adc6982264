"""Engines and GPU: what engines do, as the gateway sees them, as vLLM says itself, and as the GPU feels it."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.board import Row, board, chosen
from dashboards.panels import GREEN, GREY, RED, YELLOW, curves, states, up_to
from dashboards.queries import Query, counted, of_gateways, per_second, quantile, series, shared

ENGINE = 'engine=~"$engine"'
STATES = (("up", GREEN), ("syncing", YELLOW), ("starting", GREY), ("ejected", RED))
"""The worst last: where gateways differ, that one is shown."""


def dashboard() -> Dashboard:
    return board(
        "burnish-engines",
        "Burnish: engines and GPU",
        "`burnish engines` says why an engine is not up; its log is in the home's `logs/`.",
        [_states(), _adapters(), _vllm(), _gpus()],
        [chosen("engine", "burnish_engine_up")],
    )


def of_engine(metric: str) -> str:
    return of_gateways(metric, ENGINE)


def vllm(metric: str) -> str:
    """A gauge of vLLM's own, from /metrics/engines."""
    return shared(series(f"vllm:{metric}", ENGINE))


def vllm_rate(metric: str) -> str:
    """The same of a counter."""
    return shared(per_second(series(f"vllm:{metric}", ENGINE)))


def _states() -> Row:
    worst = " or ".join(_state(number, state) for number, (state, _) in enumerate(STATES, 1))
    restarts = counted("engine", f"increase({of_engine('burnish_engine_restarts_total')}[1h])")
    retries = counted("engine", per_second(of_engine("burnish_engine_retries_total")))
    return Row(
        "Engines, as the gateways see them",
        (
            states(
                "State",
                "Green: it takes requests. Yellow: it is starting, or getting its adapters. Red: it could not be reached or "
                "failed, and comes back by itself.",
                Query(f"max by (engine) ({worst})", "{{engine}}"),
                words={str(number): (state, color) for number, (state, color) in enumerate(STATES, 1)},
            ),
            curves(
                "Outstanding",
                "Requests that each engine has. They should be about even; one far above the others holds long answers.",
                Query(counted("engine", of_engine("burnish_engine_outstanding")), "{{engine}}"),
                span=6,
            ),
            curves(
                "Places",
                "Requests under way, those that wait, and how many may be, interactive ones. Waiting: engines are full.",
                *(
                    Query(
                        counted("base_model", of_gateways(f"burnish_places_{name}", 'class="interactive"')),
                        "{{base_model}} " + name,
                    )
                    for name in ("running", "waiting", "limit")
                ),
                span=6,
            ),
            curves(
                "Tried again",
                "Attempts that an engine failed and another took over, a second. Clients notice none of them.",
                Query(retries, "{{engine}}"),
                unit="reqps",
                span=6,
            ),
            curves(
                "Ejections",
                "Within an hour. More than a few: out of memory, or a network that comes and goes.",
                Query(
                    counted("engine", f"increase({of_engine('burnish_engine_ejections_total')}[1h])"),
                    "{{engine}}",
                ),
                span=6,
            ),
            curves(
                "Restarts",
                "Within an hour; an engine that Burnish does not run itself has none. `last_exit` in `burnish engines --json` "
                "says why.",
                Query(f"{restarts} or 0 * max by (engine) ({of_engine('burnish_engine_up')})", "{{engine}}"),
                span=6,
            ),
            states(
                "Tells of itself",
                "Whether vLLM's own numbers, below, can be had. Engines of other kinds may have none.",
                Query(shared(series("burnish_engine_metrics_up", ENGINE)), "{{engine}}"),
                words={"0": ("no", GREY), "1": ("yes", GREEN)},
                span=6,
            ),
        ),
    )


def _state(number: int, state: str) -> str:
    """`number` where an engine is in this state, 0 where it is not."""
    selector = of_gateways("burnish_engine_state", ENGINE, f'state="{state}"')
    return f"{number} * {selector}"


def _adapters() -> Row:
    load = "burnish_adapter_load_seconds"
    return Row(
        "Adapters",
        (
            curves(
                "Adapters held",
                "Loaded and checked, by engine. More than `max_loras` at once in requests makes vLLM swap them, which "
                "users feel.",
                Query(f"max by (engine) ({of_engine('burnish_engine_adapters')})", "{{engine}}"),
            ),
            curves(
                "Loading one, p95",
                "Within an hour. Slow: the engine's host reads them from a far disk.",
                Query(quantile(0.95, load, "engine", ENGINE, window="1h"), "{{engine}}"),
                unit="s",
            ),
            curves(
                "Not loaded",
                "Loads that failed, within an hour: `burnish adapters show NAME@N` gives the engine's words.",
                Query(
                    counted("engine", f"increase({of_engine('burnish_adapter_load_failures_total')}[1h])"),
                    "{{engine}}",
                ),
            ),
        ),
    )


def _vllm() -> Row:
    hits, asked = vllm_rate("prefix_cache_hits_total"), vllm_rate("prefix_cache_queries_total")
    return Row(
        "What vLLM says",
        (
            curves(
                "Running",
                "Requests in vLLM's batch. At `max_num_seqs` the others wait.",
                Query(vllm("num_requests_running"), "{{engine}}"),
                span=6,
            ),
            curves(
                "Waiting",
                "Requests that vLLM has and does not work on. Where they wait while few run, memory is short, or too many "
                "different adapters are asked for at once.",
                Query(vllm("num_requests_waiting"), "{{engine}}"),
                span=6,
            ),
            curves(
                "KV cache in use",
                "At 1 vLLM preempts: shorter contexts, fewer requests at once, or more memory (`kv_cache_gib`).",
                Query(vllm("kv_cache_usage_perc"), "{{engine}}"),
                unit="percentunit",
                thresholds=up_to(0.8, 0.95),
                most=1,
                span=6,
            ),
            curves(
                "Preemptions",
                "Requests put back since memory ran out, a second; their work is done twice.",
                Query(vllm_rate("num_preemptions_total"), "{{engine}}"),
                unit="reqps",
                span=6,
            ),
            curves(
                "Prefix cache",
                "Share of prompt tokens that vLLM had already. Low in spite of long common prompts: conversations change "
                "engines, or the cache is too small.",
                Query(f"{hits} / ({asked} > 0)", "{{engine}}"),
                unit="percentunit",
                most=1,
                span=6,
            ),
            curves(
                "Tokens",
                "Read and written by each engine, a second.",
                Query(vllm_rate("prompt_tokens_total"), "{{engine}} read"),
                Query(vllm_rate("generation_tokens_total"), "{{engine}} written"),
                unit="suffix: tokens/s",
                span=6,
            ),
            curves(
                "First token, by vLLM's own clock, p95",
                "Beside the overview's: what is more there was spent in our queue or on the way.",
                Query(
                    f"histogram_quantile(0.95, sum by (engine, le) ({vllm_rate('time_to_first_token_seconds_bucket')}))",
                    "{{engine}}",
                ),
                unit="s",
                span=6,
            ),
            curves(
                "Ended",
                "Requests by vLLM's reason. `length`: answers reach `max_tokens`. `abort`: clients left.",
                Query(
                    f"sum by (engine, finished_reason) ({vllm_rate('request_success_total')})",
                    "{{engine}} {{finished_reason}}",
                ),
                unit="reqps",
                span=6,
            ),
        ),
    )


def _gpus() -> Row:
    def gpu(name: str) -> str:
        return f"max by (gpu, UUID, modelName) (DCGM_FI_DEV_{name})"

    used, free = gpu("FB_USED"), gpu("FB_FREE")
    legend = "{{gpu}} {{modelName}}"
    return Row(
        "GPUs",
        (
            curves(
                "Busy",
                "Share of the time in which a kernel ran. High and slow at once: the GPU is the limit, add one.",
                Query(gpu("GPU_UTIL"), legend),
                unit="percent",
                most=100,
                span=6,
            ),
            curves(
                "Memory in use",
                "vLLM takes its share at the start and keeps it; a training run beside it needs `gpu_memory_share`.",
                Query(f"{used} / ({used} + {free})", legend),
                unit="percentunit",
                thresholds=up_to(0.95, 0.99),
                most=1,
                span=6,
            ),
            curves(
                "Memory's bus busy",
                "Share of the time in which memory was read or written. Near 100 while writing answers is as it should be.",
                Query(gpu("MEM_COPY_UTIL"), legend),
                unit="percent",
                most=100,
                span=6,
            ),
            curves(
                "Power and temperature",
                "Above 85 °C most GPUs slow down: air.",
                Query(gpu("POWER_USAGE"), legend + " W"),
                Query(gpu("GPU_TEMP"), legend + " °C"),
                span=6,
            ),
        ),
    )
