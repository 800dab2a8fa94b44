"""Alembic's entry: runs on the connection that `database` hands over, never by itself."""

from alembic import context

from dashboard.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a column in place
    transactional_ddl=True,  # SQLite can: a kill leaves the old tables or the new ones
)
with context.begin_transaction():
    context.run_migrations()
