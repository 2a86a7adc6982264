"""The tables, as they are after the last migration. A test compares the two.

Owns columns, keys and constraints. Knows no query: rows stay inside `adapters/`, frozen dataclasses leave it.
Times are epoch seconds (UTC). Digests are `sha256:<64 hex>`.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

#: Grows with every row, and is never given twice, not even after deletions: cursors and watermarks stand on it.
RowNumber = sa.BigInteger().with_variant(sa.Integer, "sqlite")

#: One row. Its revision grows with every change of what ought to be; a gateway reloads when it sees a new one.
registry = sa.Table(
    "registry",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.CheckConstraint("id = 1", name="one_row"),
)

base_models = sa.Table(
    "base_models",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text),
    sa.Column("created", sa.Double, nullable=False),
)

#: An adapter's name belongs to one base model for ever.
adapters = sa.Table(
    "adapters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("base_model", sa.Text, sa.ForeignKey("base_models.name"), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)

#: Rows are never deleted: a number is never given twice (promise 3).
versions = sa.Table(
    "versions",
    metadata,
    sa.Column("name", sa.Text, sa.ForeignKey("adapters.name"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False, index=True),
    sa.Column("base_model", sa.Text, sa.ForeignKey("base_models.name"), nullable=False),
    sa.Column("base_digest", sa.Text),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("target_modules", sa.JSON, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("approval", sa.JSON, nullable=False),
    sa.Column("fingerprint", sa.JSON(none_as_null=True)),
    sa.Column("created", sa.Double, nullable=False),
    sa.CheckConstraint("number >= 1", name="number"),
)

#: `variant` is the default; `history` the defaults before it, the last one last; `policy` what `RoutePolicy` says.
routes = sa.Table(
    "routes",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("history", sa.JSON, nullable=False),
    sa.Column("challengers", sa.JSON, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("policy", sa.JSON, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("created", sa.Double, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False, index=True),
    sa.Column("detail", sa.JSON, nullable=False),
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("prefix", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("records", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("limits", sa.JSON, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double),
    sa.Column("revoked", sa.Double),
)

#: What engines said, not what ought to be: no foreign keys, no revision.
placements = sa.Table(
    "placements",
    metadata,
    sa.Column("engine", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("updated", sa.Double, nullable=False),
)

gateways = sa.Table(
    "gateways",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("heartbeat", sa.Double, nullable=False),
    sa.Column("headroom", sa.Double),
    sa.Column("lines_wait", sa.Boolean, nullable=False, server_default=sa.false()),
)

#: Stored /v1/responses objects; `body` and `input` are packed JSON (`adapters.packed`).
responses = sa.Table(
    "responses",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text),
    sa.Column("created", sa.Double, nullable=False, index=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("input", sa.LargeBinary, nullable=False),
)

#: Every answered request that may be kept, and every imported row. `request` and `output` are packed JSON.
#: No foreign key points here: a completion may be forgotten, and what was said of it goes with it (`forget`).
completions = sa.Table(
    "completions",
    metadata,
    sa.Column("number", RowNumber, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("created", sa.Double, nullable=False, index=True),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("base_model", sa.Text, nullable=False),
    sa.Column("digest", sa.Text),
    sa.Column("propensity", sa.Double, nullable=False),
    sa.Column("pinned", sa.Boolean, nullable=False),
    sa.Column("key_id", sa.Text),
    sa.Column("end_user", sa.Text, index=True),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("finish_reason", sa.Text),
    sa.Column("error_code", sa.Text),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("completion_tokens", sa.Integer),
    sa.Column("ttft_seconds", sa.Double),
    sa.Column("total_seconds", sa.Double),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("request", sa.LargeBinary, nullable=False),
    sa.Column("output", sa.LargeBinary),
    sa.Index("ix_completions_route_number", "route", "number"),
    sqlite_autoincrement=True,
)

#: Judgements. Route, variant, digest and unit are the stored completion's, never the client's word.
feedback = sa.Table(
    "feedback",
    metadata,
    sa.Column("number", RowNumber, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("created", sa.Double, nullable=False, index=True),
    sa.Column("completion_id", sa.Text, nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("value", sa.Double),
    sa.Column("comment", sa.Text),
    sa.Column("demonstration", sa.JSON(none_as_null=True)),
    sa.Column("preferred_over", sa.Text),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("key_id", sa.Text),
    sa.Column("end_user", sa.Text, index=True),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("digest", sa.Text),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Index("ix_feedback_route_number", "route", "number"),
    sqlite_autoincrement=True,
)

#: Comparisons of a route's variants. `arms` are the shares now, the control first; `epoch` counts their changes, and
#: `salt` keys the hash that splits the traffic. `dropped` says why a challenger has no share any more.
experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("number", RowNumber, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("route", sa.Text, nullable=False, index=True),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("plan", sa.JSON, nullable=False),
    sa.Column("control", sa.Text, nullable=False),
    sa.Column("arms", sa.JSON, nullable=False),
    sa.Column("dropped", sa.JSON, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("epoch_began", sa.Double, nullable=False),
    sa.Column("salt", sa.Text, nullable=False),
    sa.Column("verdict", sa.JSON(none_as_null=True)),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("ended", sa.Double),
    sqlite_autoincrement=True,
)

#: The shares that an experiment has had, by epoch.
experiment_epochs = sa.Table(
    "experiment_epochs",
    metadata,
    sa.Column("experiment", sa.Text, primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("shares", sa.JSON, nullable=False),
)

#: What an experiment looked like whenever there was something new to see.
experiment_looks = sa.Table(
    "experiment_looks",
    metadata,
    sa.Column("number", RowNumber, primary_key=True),
    sa.Column("experiment", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Index("ix_experiment_looks_experiment_number", "experiment", "number"),
    sqlite_autoincrement=True,
)

#: What was measured of each answer that counts in an experiment; they go when the completion goes. `id` is the
#: completion's, or that of an answer in its shadow, which has `shadow_of` and its own `output` (packed JSON).
observations = sa.Table(
    "observations",
    metadata,
    sa.Column("number", RowNumber, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("experiment", sa.Text, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("unit", sa.Text, nullable=False, index=True),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("failed_over", sa.Boolean, nullable=False),
    sa.Column("shadow_of", sa.Text, index=True),
    sa.Column("error", sa.Double, nullable=False),
    sa.Column("log_ttft", sa.Double),
    sa.Column("log_inter_token", sa.Double),
    sa.Column("log_total", sa.Double),
    sa.Column("log_length", sa.Double),
    sa.Column("refused", sa.Double),
    sa.Column("repetition", sa.Double),
    sa.Column("malformed", sa.Double),
    sa.Column("output", sa.LargeBinary),
    sa.Index("ix_observations_experiment_number", "experiment", "number"),
    sqlite_autoincrement=True,
)

#: What was answered to an idempotency key: the row it made, and the digest of the body it came with.
#: `owner` is the key's id, or "" while no keys are in use (NULL would never equal NULL).
idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("body_digest", sa.Text, nullable=False),
    sa.Column("made", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False, index=True),
)

#: The durable queue. A claim raises `token`; writes that carry an older one are refused (fencing).
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("number", RowNumber, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("route", sa.Text),
    sa.Column("key_id", sa.Text),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("wish", sa.Text),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("worker", sa.Text),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("lease_until", sa.Double),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("finished", sa.Double),
    sa.Column("metadata", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)

job_events = sa.Table(
    "job_events",
    metadata,
    sa.Column("number", RowNumber, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id"), nullable=False, index=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)

#: The results of a batch's lines, until they are in its files: one row a line, whoever answers it again.
#: `body` is packed JSON. A batch is a job of kind "batch".
batch_lines = sa.Table(
    "batch_lines",
    metadata,
    sa.Column("batch", sa.Text, primary_key=True),
    sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("is_error", sa.Boolean, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

#: Workers that asked for jobs lately: what is, not what ought to be.
workers = sa.Table(
    "workers",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("seen", sa.Double, nullable=False),
)

#: Immutable snapshots that runs learned from; `report` counts what was drawn, kept and left out, and why.
datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("route", sa.Text),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("report", sa.JSON, nullable=False),
)

#: The row ids of a dataset. They outlive the completions they name, so that `forget` and lineage can follow them;
#: `user_digest` (see `rows.user_digest`) does so for rows of files, and for users whose completions are gone.
dataset_rows = sa.Table(
    "dataset_rows",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("row_id", sa.Text, nullable=False),
    sa.Column("completion_id", sa.Text, index=True),
    sa.Column("feedback_id", sa.Text, index=True),
    sa.Column("user_digest", sa.Text, index=True),
    sa.Column("split", sa.Text, nullable=False),
)

#: Uploaded files; their bytes lie under the home's `files/`, named by id.
files = sa.Table(
    "files",
    metadata,
    sa.Column("number", RowNumber, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("key_id", sa.Text),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double),
    sqlite_autoincrement=True,
)

#: Files that come in parts. `parts` lists the parts' ids in the order they arrived; `file_seconds` is how long the
#: file they become is kept (NULL: for ever).
uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("parts", sa.JSON, nullable=False),
    sa.Column("file_id", sa.Text),
    sa.Column("file_seconds", sa.Integer),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
)
