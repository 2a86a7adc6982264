"""Batch before training: whether batch lines wait at a gateway, for runs that then make room."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "gateways", sa.Column("lines_wait", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def downgrade() -> None:
    op.drop_column("gateways", "lines_wait")
