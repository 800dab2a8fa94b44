"""The database: SQLite in the state folder, or PostgreSQL by URL; migrated at start.

One control plane writes to one database. Writers take turns in this process (`writing`), so that
the ids of events become visible in order and a stream that resumes by id misses none.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from protocol.errors import SettingsError

log = logging.getLogger(__name__)


class Database:
    """An engine whose tables are up to date."""

    def __init__(self, url: str, password: Path | None = None) -> None:
        self.engine = _engine(url)
        if password is not None:
            _read_password(self.engine, password)
        self._writer = threading.Lock()
        try:
            _migrate(self.engine)
        except (SQLAlchemyError, CommandError) as error:
            shown = self.engine.url.render_as_string(hide_password=True)
            reason = str(error).splitlines()[0]
            raise SettingsError(f"database.url = {shown!r}: cannot be used: {reason}") from error
        except OSError as error:
            raise SettingsError(
                f"database.password = {str(password)!r}: cannot be read: {error.strerror or error}"
            ) from error

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that is thrown away."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that is committed at the end, or rolled back by an exception."""
        with self._writer, Session(self.engine) as session, session.begin():
            yield session

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
            raise SettingsError(
                f"database.url = {url!r}: use sqlite:///FILE or postgresql+psycopg:"
            )
        engine = create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    except (ArgumentError, NoSuchModuleError) as error:
        raise SettingsError(f"database.url is not an SQLAlchemy URL: {error}") from error
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"database.url needs the Python package {error.name!r}, which is not installed",
            hint="pip install 'fedward[postgres]'",
        ) from error
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    return engine


def _read_password(engine: Engine, file: Path) -> None:
    """From the file, at each connection. libpq's own file will not do: it must be 0600, which a
    file that a cluster mounts for a pod's group never is.
    """

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        parameters["password"] = file.read_text().strip()


def _prepare_sqlite(engine: Engine) -> None:
    if engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # The driver's own transactions begin late and would let a reader's snapshot go stale
        # before its first write; SQLAlchemy begins them instead (below).
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # FULL, not NORMAL: the supervisor forgets what we acknowledged, so it must survive a
        # power cut, not only a kill.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA busy_timeout=10000")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
