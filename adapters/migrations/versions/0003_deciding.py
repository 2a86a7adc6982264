"""Deciding: experiments, what was measured of each answer in them, and how they looked from time to time."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "experiment_epochs",
        sa.Column("experiment", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("shares", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("experiment", "epoch", name=op.f("pk_experiment_epochs")),
    )
    op.create_table(
        "experiment_looks",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("experiment", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_experiment_looks")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_experiment_looks_experiment_number", "experiment_looks", ["experiment", "number"], unique=False
    )
    op.create_table(
        "experiments",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("control", sa.Text(), nullable=False),
        sa.Column("arms", sa.JSON(), nullable=False),
        sa.Column("dropped", sa.JSON(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("epoch_began", sa.Double(), nullable=False),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.Column("verdict", sa.JSON(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_experiments")),
        sa.UniqueConstraint("id", name=op.f("uq_experiments_id")),
        sa.UniqueConstraint("name", name=op.f("uq_experiments_name")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_experiments_route", "experiments", ["route"], unique=False)
    op.create_index("ix_experiments_state", "experiments", ["state"], unique=False)
    op.create_table(
        "observations",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("experiment", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("variant", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("failed_over", sa.Boolean(), nullable=False),
        sa.Column("shadow_of", sa.Text(), nullable=True),
        sa.Column("error", sa.Double(), nullable=False),
        sa.Column("log_ttft", sa.Double(), nullable=True),
        sa.Column("log_inter_token", sa.Double(), nullable=True),
        sa.Column("log_total", sa.Double(), nullable=True),
        sa.Column("log_length", sa.Double(), nullable=True),
        sa.Column("refused", sa.Double(), nullable=True),
        sa.Column("repetition", sa.Double(), nullable=True),
        sa.Column("malformed", sa.Double(), nullable=True),
        sa.Column("output", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_observations")),
        sa.UniqueConstraint("id", name=op.f("uq_observations_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_observations_experiment_number", "observations", ["experiment", "number"], unique=False
    )
    op.create_index("ix_observations_shadow_of", "observations", ["shadow_of"], unique=False)
    op.create_index("ix_observations_unit", "observations", ["unit"], unique=False)


def downgrade() -> None:
    op.drop_table("observations")
    op.drop_table("experiments")
    op.drop_table("experiment_looks")
    op.drop_table("experiment_epochs")
