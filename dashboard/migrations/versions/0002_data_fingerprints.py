"""A fingerprint of each hospital's data, as it said in its answer to prepare."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("site_totals", sa.Column("data_fingerprint", sa.String(length=64)))


def downgrade() -> None:
    op.drop_column("site_totals", "data_fingerprint")
