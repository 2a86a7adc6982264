"""Batch and jobs: what nobody waits for, and whether it gets on."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.board import Row, board
from dashboards.panels import at_least, bars, curves, number, up_to
from dashboards.queries import ROUTE, Query, counted, of_gateways, per_second, quantile, series, shared

BATCH = 'class="batch"'
OPEN_BATCHES = 'state=~"validating|in_progress|finalizing|cancelling"'
LEFT = 'state="left"'
COMPLETE = 'ending="complete"'
QUEUED = 'state="queued"'
RUNNING = 'state="running"'


def dashboard() -> Dashboard:
    return board(
        "burnish-batches",
        "Burnish: batch and jobs",
        "Batches and all other jobs. `burnish batches list` and `burnish jobs list` name them.",
        [_now(), _batches(), _jobs()],
    )


def _now() -> Row:
    unfinished = shared(series("burnish_batches", OPEN_BATCHES))
    return Row(
        "Now",
        (
            number(
                "Batches under way",
                "That have not ended; how far each is: `burnish batches list`.",
                Query(f"sum({unfinished}) or vector(0)"),
                span=3,
            ),
            number(
                "Lines left",
                "Of batches that have not ended; at the pace beside it, so long it will take.",
                Query(f"sum({shared(series('burnish_batch_lines', LEFT))}) or vector(0)"),
                decimals=0,
                span=3,
            ),
            number(
                "Lines answered",
                "Batch lines that were answered, a second.",
                Query(counted("", per_second(of_gateways("burnish_requests_total", BATCH, COMPLETE)))),
                unit="reqps",
                span=3,
            ),
            number(
                "Oldest job that waits",
                "Since it was made, or queued. Long: no worker, or another run of its route goes first.",
                Query(f"max({shared(series('burnish_job_age_seconds', QUEUED))}) or vector(0)"),
                unit="s",
                thresholds=up_to(1800, 7200),
                span=3,
            ),
            number(
                "Jobs that run",
                "Training runs and batches that somebody holds.",
                Query(f"sum({shared(series('burnish_jobs', RUNNING))})"),
                span=3,
            ),
            number(
                "Workers",
                "Processes that take training jobs. 0: jobs wait.",
                Query(f"max({shared(series('burnish_workers'))})"),
                thresholds=at_least(1, 1),
                span=3,
            ),
            number(
                "Gateways",
                "Processes that serve, and work on batches.",
                Query(f"max({shared(series('burnish_gateways'))})"),
                thresholds=at_least(1, 1),
                span=3,
            ),
            number(
                "Read off the records",
                "How old the numbers of jobs, batches, experiments and feedback are. They grow old while the database "
                "cannot be read.",
                Query(f"min({series('burnish_records_stale_seconds')})"),
                unit="s",
                thresholds=up_to(30, 120),
                span=3,
            ),
        ),
    )


def _batches() -> Row:
    endings = counted("ending", per_second(of_gateways("burnish_requests_total", BATCH, ROUTE)))
    return Row(
        "Batches",
        (
            bars(
                "By state",
                "All batches on record. `failed`: a bad file, or a gone one: `burnish batches show BATCH`.",
                Query(shared(series("burnish_batches")), "{{state}}"),
            ),
            curves(
                "Lines",
                "Of batches that have not ended. `failed` lines stand in the error file with their status.",
                Query(shared(series("burnish_batch_lines")), "{{state}}"),
                stacked=True,
            ),
            curves(
                "Lines by how they ended",
                "A second. `evicted` lines made room for people and come again.",
                Query(endings, "{{ending}}"),
                unit="reqps",
                stacked=True,
            ),
            curves(
                "Places for lines",
                "Under way, and how many may be. The limit grows while latency targets are kept, and shrinks where not.",
                *(
                    Query(
                        counted("base_model", of_gateways(f"burnish_places_{name}", BATCH)),
                        "{{base_model}} " + name,
                    )
                    for name in ("running", "waiting", "limit")
                ),
            ),
            curves(
                "Wait for a place, p95",
                "Lines wait while people are served. For hours: a machine of its own, or the night.",
                Query(quantile(0.95, "burnish_queue_seconds", "base_model", BATCH), "{{base_model}}"),
                unit="s",
            ),
            curves(
                "Tokens of batches",
                "Tokens that batches read and write, a second; what a GPU at night is worth.",
                Query(
                    counted("direction", per_second(of_gateways("burnish_tokens_total", BATCH, ROUTE))),
                    "{{direction}}",
                ),
                unit="suffix: tokens/s",
            ),
        ),
    )


def _jobs() -> Row:
    return Row(
        "Jobs",
        (
            bars(
                "By kind and state",
                "All jobs on record. Many `failed`: `burnish jobs list` names them.",
                Query(shared(series("burnish_jobs")), "{{kind}} {{state}}"),
            ),
            curves(
                "Age of the oldest",
                "Of each state that has not ended. A line that climbs on and on is a job that is stuck.",
                Query(shared(series("burnish_job_age_seconds")), "{{kind}} {{state}}"),
                unit="s",
            ),
            curves(
                "Leases lost",
                "Within an hour: a worker or a gateway was killed or cut off with the job in hand. It is taken up again, "
                "`max_attempts` times.",
                Query(shared(f"increase({series('burnish_job_attempts_lost_total')}[1h])"), "{{kind}}"),
            ),
        ),
    )
