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

#: `variant` is the default; `history` the defaults before it, the last one last.
routes = sa.Table(
    "routes",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("history", sa.JSON, nullable=False),
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
    sa.Column("created", sa.Double, nullable=False),
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
)

#: Stored /v1/responses objects; `body` and `input` are zlib-compressed JSON.
responses = sa.Table(
    "responses",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text),
    sa.Column("created", sa.Double, nullable=False, index=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("input", sa.LargeBinary, nullable=False),
)
