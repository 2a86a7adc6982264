"""Overview: is everybody served, how quickly, what goes wrong, what does it cost, how much room is left."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.board import Row, board
from dashboards.panels import (
    ANY_IS_BAD,
    GREEN,
    OF_TARGET,
    RED,
    at_least,
    curves,
    listed,
    number,
    spread,
    up_to,
)
from dashboards.queries import (
    CLIENT_MISTAKES,
    INTERACTIVE,
    MILLION,
    ROUTE,
    Query,
    counted,
    of_gateways,
    over_target,
    per_second,
    quantile,
    series,
    shared,
    targets_asked_for,
)

TTFT, ITL = "burnish_time_to_first_token_seconds", "burnish_inter_token_latency_seconds"
TOLD, SERVED = 'ending=~"error|interrupted"', 'ending="complete"'
USED, IDLE = 'route!=""', 'route=""'
"""What of an engine's cost somebody used, and what nobody did."""

COST_WINDOW = "1h"
"""Cost runs on while nobody asks: over less it would jump."""

OF_BURNISH = 'job="burnish"'
"""Other processes have families of these names too."""


def dashboard() -> Dashboard:
    return board(
        "burnish-overview",
        "Burnish: overview",
        "Start here. Red in the first row is what users feel; the rows below say where it comes from.",
        [_now(), _traffic(), _latency(), _errors(), _cost(), _gateways()],
    )


def requests(by: str, *matchers: str) -> str:
    return counted(by, per_second(of_gateways("burnish_requests_total", *matchers, ROUTE)))


def errors(by: str, *matchers: str) -> str:
    return counted(by, per_second(of_gateways("burnish_errors_total", *matchers)))


def tokens(by: str, *matchers: str, window: str = "$__rate_interval") -> str:
    return counted(by, per_second(of_gateways("burnish_tokens_total", *matchers), window))


def cost(by: str, *matchers: str) -> str:
    """Money a second."""
    return counted(by, per_second(of_gateways("burnish_cost_total", *matchers), COST_WINDOW))


def _now() -> Row:
    told, theirs = requests("", INTERACTIVE, TOLD), errors("", INTERACTIVE, CLIENT_MISTAKES)
    failed = f"clamp_min(({told} or vector(0)) - ({theirs} or vector(0)), 0)"
    return Row(
        "Now",
        (
            number(
                "Requests",
                "Requests of all classes that ended, a second.",
                Query(requests("")),
                unit="reqps",
                span=3,
            ),
            number(
                "Failed",
                "Share of interactive requests that failed by our fault. Above 0.1% look at the errors below, and at "
                "the engines' dashboard.",
                Query(f"{failed} / ({requests('', INTERACTIVE, SERVED)} + {failed})"),
                unit="percentunit",
                thresholds=up_to(0.001, 0.01),
                decimals=2,
                span=3,
            ),
            number(
                "First token, of its target",
                "The worst route's 95th percentile over its target. Above 1 users wait too long: add engines, or lower "
                "what batches may take (`[priority]`).",
                Query(f"max({over_target('ttft', TTFT)})"),
                unit="percentunit",
                thresholds=OF_TARGET,
                span=3,
            ),
            number(
                "Between tokens, of its target",
                "The worst route's 95th percentile over its target. Above 1 answers flow too slowly: fewer requests an "
                "engine (`max_concurrent`), or more engines.",
                Query(f"max({over_target('itl', ITL)})"),
                unit="percentunit",
                thresholds=OF_TARGET,
                span=3,
            ),
            number(
                "Headroom",
                "What is left of the latency targets on the gateway that has least. Below 0.1 batches shrink and "
                "training rests; below 0 a target is missed.",
                Query(f"min({of_gateways('burnish_headroom')})"),
                thresholds=at_least(0.1, 0.4),
                decimals=2,
                span=3,
            ),
            number(
                "Tokens written",
                "Tokens of answers, a second, of all classes.",
                Query(tokens("", 'direction="completion"', ROUTE)),
                unit="suffix: tokens/s",
                span=3,
            ),
            number(
                "A million tokens cost",
                "What engines cost over the last hour, idle time included, for each million tokens read and written. "
                "Nothing is shown where no price is set (`[costs]`).",
                Query(
                    f"{cost('currency')} * {MILLION} / scalar({tokens('', window=COST_WINDOW)})",
                    "{{currency}}",
                ),
                decimals=2,
                span=3,
            ),
            number(
                "Engines up",
                "Engines that take requests, as the gateway that sees fewest sees them.",
                Query(f"sum(min by (engine) ({of_gateways('burnish_engine_up')}))", "up"),
                Query(f"count(count by (engine) ({of_gateways('burnish_engine_up')}))", "of"),
                span=3,
            ),
        ),
    )


def _traffic() -> Row:
    in_flight = of_gateways("burnish_in_flight", ROUTE)
    return Row(
        "Traffic",
        (
            curves(
                "Requests by class",
                "What ended, a second. Batch lines give way to interactive requests and training to both.",
                Query(requests("class"), "{{class}}"),
                unit="reqps",
                stacked=True,
            ),
            curves(
                "Requests by route",
                "Interactive requests a second. `other` is what came beyond `metrics.max_series`.",
                Query(requests("route", INTERACTIVE), "{{route}}"),
                unit="reqps",
                stacked=True,
            ),
            curves(
                "How they ended",
                "`left`: the client went before the end, which it often does when answers are slow. `evicted`: a batch "
                "line that was sent back and comes again. `interrupted`: the gateway stopped.",
                Query(requests("ending"), "{{ending}}"),
                unit="reqps",
                stacked=True,
            ),
            curves(
                "In flight",
                "Requests under way. Where it only grows, engines do not keep up.",
                Query(counted("class", in_flight), "{{class}}"),
                stacked=True,
            ),
            curves(
                "Wait for a place",
                "95th percentile. Interactive requests should not wait: where they do, engines are full.",
                Query(
                    quantile(0.95, "burnish_queue_seconds", "class, base_model"), "{{class}} {{base_model}}"
                ),
                unit="s",
            ),
            curves(
                "Tokens",
                "Read (prompt) and written (completion), a second.",
                Query(tokens("direction", ROUTE), "{{direction}}"),
                unit="suffix: tokens/s",
            ),
        ),
    )


def _latency() -> Row:
    p95 = [
        Query(quantile(0.95, TTFT, "route", INTERACTIVE, ROUTE), "{{route}}"),
        Query(targets_asked_for("ttft"), "{{route}} target"),
    ]
    return Row(
        "Latency of interactive requests",
        (
            curves(
                "First token, p95",
                "From a streamed request to its first token; dashed: the target (`[targets]`). What waits is either in "
                "our queue or in vLLM's: see the engines' dashboard.",
                *p95,
                unit="s",
            ),
            curves(
                "Between tokens, p95",
                "Between two pieces of a stream; dashed: the target. It grows with the requests an engine has at once.",
                Query(quantile(0.95, ITL, "route", INTERACTIVE, ROUTE), "{{route}}"),
                Query(targets_asked_for("itl"), "{{route}} target"),
                unit="s",
            ),
            curves(
                "Of their targets, p95",
                "Both over their targets. From 0.6 on batches and training make room, above 1 the target is missed.",
                Query(over_target("ttft", TTFT), "{{route}} first token"),
                Query(over_target("itl", ITL), "{{route}} between tokens"),
                unit="percentunit",
                thresholds=OF_TARGET,
                most=1,
            ),
            curves(
                "First token, of all routes",
                "Half of the streams, 95 and 99 of a hundred had their first token within so long. Far apart: some "
                "requests wait for others, or for a long prompt.",
                *(
                    Query(quantile(share, TTFT, "", INTERACTIVE, ROUTE), f"p{share * 100:.0f}")
                    for share in (0.5, 0.95, 0.99)
                ),
                unit="s",
            ),
            spread(
                "First token, how many",
                "Each column is a moment: how many first tokens took how long. Two bands are two kinds of requests.",
                Query(
                    counted(
                        "le",
                        f"increase({of_gateways(f'{TTFT}_bucket', INTERACTIVE, ROUTE)}[$__rate_interval])",
                    ),
                    heatmap=True,
                ),
                unit="s",
            ),
            curves(
                "Whole requests, p95",
                "From the request to its last byte, of those that were completed. It goes with the answers' length.",
                Query(
                    quantile(0.95, "burnish_request_seconds", "class, route", ROUTE), "{{class}} {{route}}"
                ),
                unit="s",
            ),
        ),
    )


def _errors() -> Row:
    return Row(
        "Errors",
        (
            curves(
                "Errors by kind",
                "Of clients, and of variants in whose stead the control answered. `engine_failed`, `engine_timeout`, `unavailable`: the engines. `overloaded`: too "
                "many waited. `not_recorded`: the database. The others are the clients' own.",
                Query(errors("error"), "{{error}}"),
                unit="reqps",
                stacked=True,
            ),
            curves(
                "Errors by route and variant",
                "One variant alone: roll it back. All of them: the engines. No name: refused before it was known what "
                "was asked.",
                Query(errors("route, variant", ROUTE), "{{route}} {{variant}}"),
                unit="reqps",
                stacked=True,
            ),
            curves(
                "Error budget",
                "How quickly the budget of 0.1% failed interactive requests in 30 days is used up: 1 is just in time. At "
                "14.4 for an hour somebody is called.",
                Query("burnish:availability_errors:ratio_rate1h / 0.001", "last hour"),
                Query("burnish:availability_errors:ratio_rate6h / 0.001", "last 6 hours"),
                thresholds=up_to(1, 14.4),
            ),
            curves(
                "Went on elsewhere",
                "`tried again`: an engine failed before a byte was sent, and another answered. `fail-over`: the variant "
                "could not answer and the control did. Clients notice neither; engines need a look.",
                Query(
                    counted("engine", per_second(of_gateways("burnish_engine_retries_total"))),
                    "tried again, not on {{engine}}",
                ),
                Query(
                    counted("route, variant", per_second(of_gateways("burnish_fail_overs_total", ROUTE))),
                    "fail-over of {{variant}}",
                ),
                unit="reqps",
            ),
            curves(
                "Sent away",
                "`overloaded`: refused with 503 since too many waited; more engines, or a longer queue (`[admission]`). "
                "`evicted`: batch lines that made room for people.",
                Query(
                    counted("class", per_second(of_gateways("burnish_overloaded_total"))),
                    "overloaded {{class}}",
                ),
                Query(counted("", per_second(of_gateways("burnish_evicted_total"))), "evicted"),
                unit="reqps",
            ),
            listed(
                "Alerts",
                "Burnish's alerts that fire or are about to. Each one's `runbook_url` names its remedy.",
                Query(
                    'max by (alertname, alertstate, severity) (ALERTS{alertname=~"Burnish.+"}) '
                    'or on () label_replace(vector(0), "alertname", "none", "", "")',
                    now=True,
                ),
                hidden=("Value",),
                span=8,
            ),
        ),
    )


def _cost() -> Row:
    by_route = cost("route, currency", USED, ROUTE)
    return Row(
        "Cost",
        (
            curves(
                "Cost an hour",
                "What engines cost, by who used them; `idle` is time in which nobody did. Much of it: fewer engines, or "
                "batches for the night.",
                Query(f"3600 * {cost('route, currency', USED)}", "{{route}} {{currency}}"),
                Query(f"3600 * {cost('currency', IDLE)}", "idle {{currency}}"),
                stacked=True,
            ),
            curves(
                "A million tokens cost, by route",
                "Without idle time. Long prompts are cheap, long answers dear, and a busy engine cheaper than a quiet one.",
                Query(
                    f"{MILLION} * {by_route} / on (route) group_left () "
                    f"({tokens('route', ROUTE, window=COST_WINDOW)} > 0)",
                    "{{route}} {{currency}}",
                ),
            ),
            curves(
                "Engine hours",
                "Hours in which an engine was there, for each hour: 1 is all of the time.",
                Query(
                    counted(
                        "engine", f"increase({of_gateways('burnish_engine_hours_total')}[{COST_WINDOW}])"
                    ),
                    "{{engine}}",
                ),
                unit="h",
            ),
        ),
    )


def _gateways() -> Row:
    lag = "burnish_event_loop_lag_seconds"
    commit = "burnish_recording_commit_seconds"
    free, size = of_gateways("burnish_disk_free_bytes"), of_gateways("burnish_disk_size_bytes")
    return Row(
        "Gateways and the record",
        (
            curves(
                "Event loop's lag, p99",
                "How late the gateway gets round to things. Above 0.1 s every request feels it: less load a process, or "
                "more processor.",
                Query(quantile(0.99, lag, "instance"), "{{instance}}"),
                unit="s",
                thresholds=up_to(0.05, 0.1),
                span=6,
            ),
            curves(
                "Processor and memory",
                "Of the gateway's process. One core is all that one gateway uses.",
                Query(per_second(of_gateways("process_cpu_seconds_total", OF_BURNISH)), "{{instance}} cores"),
                Query(
                    f"{of_gateways('process_resident_memory_bytes', OF_BURNISH)} / 2^30", "{{instance}} GiB"
                ),
                span=6,
            ),
            curves(
                "Commits of records, p95",
                "How long one takes. The last byte of an answer waits for it: a slow disk, or a busy database.",
                Query(quantile(0.95, commit, "instance"), "{{instance}}"),
                unit="s",
                thresholds=up_to(0.05, 0.25),
                span=6,
            ),
            curves(
                "Records that wait",
                "At `recording.max_queue` (10,000) a record counts as failed. Where it grows, the database is too slow.",
                Query(of_gateways("burnish_recording_queue"), "{{instance}}"),
                span=6,
            ),
            number(
                "Recording",
                "Whether the database takes records. If not: is its disk full, is its server away?",
                Query(f"max({of_gateways('burnish_recording_failing')})"),
                thresholds=ANY_IS_BAD,
                words={"0": ("works", GREEN), "1": ("fails", RED)},
            ),
            number(
                "Records lost",
                "Answers that are on no record, in the time shown. Each is a line `completion_not_recorded` in the log.",
                Query(f"sum(increase({of_gateways('burnish_recording_lost_total')}[$__range]))"),
                thresholds=ANY_IS_BAD,
                decimals=0,
            ),
            number(
                "Telemetry dropped",
                "Spans and generations that were not sent, in the time shown: the collector is away or too slow. "
                "Requests do not notice.",
                Query(
                    f"sum by (to) (increase({of_gateways('burnish_telemetry_dropped_total')}[$__range]))",
                    "{{to}}",
                ),
                thresholds=up_to(1, 1000),
                decimals=0,
            ),
            number(
                "Disk free",
                "Of the home's file system. Below a tenth make room: old versions, `cache/`, `logs/`, files.",
                Query(f"min({free} / {size})"),
                unit="percentunit",
                thresholds=at_least(0.1, 0.2),
            ),
            number(
                "Gateways",
                "That have given a sign of life to the database.",
                Query(f"max({shared(series('burnish_gateways'))})"),
                thresholds=at_least(1, 1),
            ),
            listed(
                "Versions",
                "What runs where. Gateways on one database should be of one version.",
                Query(of_gateways("burnish_build_info"), now=True),
                hidden=("Value",),
                span=4,
                height=4,
            ),
        ),
    )
