"""A PostgreSQL of the test's own, from Debian's package, on a socket nobody else uses."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from .service import free_port


def programs() -> Path | None:
    """The folder with initdb and postgres; the newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def missing() -> str:
    """Why there is no PostgreSQL; "" when there is one."""
    if programs() is None:
        return "PostgreSQL is not installed (Debian: postgresql)"
    return "" if find_spec("psycopg") else "psycopg is not installed"


@contextmanager
def postgres(password: str = "") -> Iterator[str]:
    """Yield the URL of an empty database; with a password, it asks for it."""
    folder = programs()
    assert folder is not None
    home = Path(tempfile.mkdtemp(prefix="fedward-pg-"))
    port = free_port()
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0:  # it refuses to run as root
        shutil.chown(home, "postgres", "postgres")
    how: list[str | Path] = ["-A", "trust"]
    if password:
        (home / "password").write_text(password)
        shutil.chown(home / "password", user)
        how = ["-A", "scram-sha-256", "--pwfile", home / "password"]
    try:
        _as(user, folder / "initdb", "-D", home / "data", *how, "-U", "fedward", "-N")
        options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1"
        _as(user, folder / "pg_ctl", "-D", home / "data", "-o", options, "-w", "start")
        try:
            yield f"postgresql+psycopg://fedward@127.0.0.1:{port}/postgres"
        finally:
            _as(user, folder / "pg_ctl", "-D", home / "data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _as(user: str, *command: str | Path) -> None:
    words = [str(word) for word in command]
    if os.geteuid() == 0:
        words = ["runuser", "-u", user, "--", *words]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
