"""What the aggregator foretold a study would cost."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COLUMNS = {
    "forecast_bytes_up": sa.BigInteger,
    "forecast_bytes_down": sa.BigInteger,
    "forecast_round_seconds": sa.Double,
    "captured_energy": sa.Double,
}


def upgrade() -> None:
    for name, kind in COLUMNS.items():
        op.add_column("studies", sa.Column(name, kind()))


def downgrade() -> None:
    for name in COLUMNS:
        op.drop_column("studies", name)
