"""Training and gates: how runs go, why they rest, what their gates said."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.board import Row, board
from dashboards.panels import BLUE, GREEN, YELLOW, at_least, bars, curves, number, states, up_to
from dashboards.queries import ROUTE, Query, of_gateways, series, shared

TRAINING = 'kind="training"'
RUNNING = 'state="running"'
WAITING = 'state=~"validating_files|queued|paused"'
OPEN = 'state=~"validating_files|queued|running|paused"'
PASSED = 'outcome="pass"'
LOST = "burnish_job_attempts_lost_total"


def dashboard() -> Dashboard:
    return board(
        "burnish-training",
        "Burnish: training and gates",
        "Runs under way and what became of them. `burnish jobs watch JOB` follows one; `burnish adapters card NAME@N` "
        "has all of a gate's numbers.",
        [_now(), _run(), _outcomes()],
    )


def of_run(name: str) -> str:
    return shared(series(f"burnish_training_{name}", ROUTE))


def _now() -> Row:
    lost = f"increase({series(LOST, TRAINING)}[$__range])"
    return Row(
        "Now",
        (
            number(
                "Jobs that run",
                "Training runs under way; one route has one at a time.",
                Query(f"sum({shared(series('burnish_jobs', TRAINING, RUNNING))}) or vector(0)"),
            ),
            number(
                "Jobs that wait",
                "Queued, validated or paused. They wait for a worker or for another run of the same route.",
                Query(f"sum({shared(series('burnish_jobs', TRAINING, WAITING))}) or vector(0)"),
            ),
            number(
                "Workers",
                "That have claimed or looked for jobs lately. 0: jobs wait; `burnish worker`, or `training.worker = true`.",
                Query(f"max({shared(series('burnish_workers'))})"),
                thresholds=at_least(1, 1),
            ),
            number(
                "Gates passed",
                "Of all runs whose gate has said something. Inconclusive is not a pass: mostly too few held-out rows.",
                Query(
                    f"sum({shared(series('burnish_training_gate_total', ROUTE, PASSED))}) "
                    f"/ sum({of_run('gate_total')})"
                ),
                unit="percentunit",
            ),
            number(
                "Leases lost",
                "How often a worker has lost a training job, in the time shown: killed, out of memory, or cut off.",
                Query(f"sum({shared(lost)})"),
                thresholds=up_to(1, 3),
                decimals=0,
            ),
            number(
                "Headroom",
                "Training works at full speed above 0.4, slows below, and stops below 0.1, so that people are served first.",
                Query(f"min({of_gateways('burnish_headroom')})"),
                thresholds=at_least(0.1, 0.4),
                decimals=2,
            ),
        ),
    )


def _run() -> Row:
    return Row(
        "Runs",
        (
            states(
                "Stage",
                "From `dataset` to `publish`. A stage that never ends: its job's `run.log` in the home's `runs/`.",
                Query(f"{of_run('stage')} == 1", "{{route}} {{stage}}"),
                words={"1": ("so", BLUE)},
                span=8,
            ),
            states(
                "Resting",
                "Yellow: the run gives way to people, or to batch lines that wait. All day: train at night, or elsewhere (`burnish worker`).",
                Query(of_run("resting"), "{{route}}"),
                words={"0": ("works", GREEN), "1": ("rests", YELLOW)},
                span=8,
            ),
            curves(
                "Rested so far",
                "Seconds that this attempt has given way for. A rest changes nothing of the result.",
                Query(of_run("paused_seconds"), "{{route}}"),
                unit="s",
            ),
            curves(
                "Loss",
                "Of training, and of the rows held back for validation (dashed: none). Validation that rises while "
                "training falls: fewer epochs.",
                Query(of_run("loss"), "{{route}}"),
                Query(of_run("validation_loss"), "{{route}} validation"),
                least=None,
            ),
            curves(
                "Progress",
                "Optimizer steps done of all. Flat for long without a rest: see the alert `BurnishTrainingStalled`.",
                Query(f"{of_run('step')} / ({of_run('total_steps')} > 0)", "{{route}}"),
                unit="percentunit",
                most=1,
            ),
            curves(
                "Time left",
                "By the speed so far, rests included.",
                Query(of_run("eta_seconds"), "{{route}}"),
                unit="s",
            ),
            curves(
                "Speed",
                "Tokens trained on, a second, rests included.",
                Query(of_run("tokens_per_second"), "{{route}}"),
                unit="suffix: tokens/s",
            ),
            curves(
                "Headroom beside it",
                "Of each gateway, and what the run goes by. It should stay above 0 while a run is on. Where lines wait "
                "(1) the run rests below the upper threshold.",
                Query(of_gateways("burnish_headroom"), "{{instance}}"),
                Query(of_run("headroom"), "{{route}} goes by"),
                Query(of_run("lines_wait"), "{{route}}: lines wait"),
                thresholds=at_least(0.1, 0.4),
                least=None,
                most=1,
            ),
            curves(
                "Jobs",
                "Training jobs that have not ended, by state.",
                Query(shared(series("burnish_jobs", TRAINING, OPEN)), "{{state}}"),
                stacked=True,
            ),
        ),
    )


def _outcomes() -> Row:
    return Row(
        "Gates",
        (
            bars(
                "Outcomes",
                "What gates said, ever, by route. Many `fail`: the rows teach something else than users ask for.",
                Query(of_run("gate_total"), "{{route}} {{outcome}}"),
                span=8,
            ),
            curves(
                "Outcomes over time",
                "Gates within a day. None for long although there is feedback: is the route's policy on?",
                Query(
                    shared(f"increase({series('burnish_training_gate_total', ROUTE)}[1d])"),
                    "{{route}} {{outcome}}",
                ),
                span=8,
            ),
            curves(
                "Adapter versions",
                "`rejected` did not pass; a person may approve one. `candidate` is under test.",
                Query(shared(series("burnish_adapter_versions")), "{{state}}"),
                span=8,
            ),
        ),
    )
