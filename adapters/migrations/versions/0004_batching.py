"""Batching: the results of batches' lines, what each key may ask for, and each gateway's headroom."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "batch_lines",
        sa.Column("batch", sa.Text(), nullable=False),
        sa.Column("line", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("is_error", sa.Boolean(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("batch", "line", name=op.f("pk_batch_lines")),
    )
    op.add_column("keys", sa.Column("limits", sa.JSON(), nullable=False, server_default=sa.text("'{}'")))
    op.add_column("gateways", sa.Column("headroom", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("gateways", "headroom")
    op.drop_column("keys", "limits")
    op.drop_table("batch_lines")
