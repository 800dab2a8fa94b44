"""aggregator.toml and the aggregator's start: each mistake is one sentence and an exit code."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import SettingsError
from server.secrets import ensure_secret, read_secret
from server.settings import load_aggregator


def test_paths_are_relative_to_the_file(
    write_aggregator: Callable[..., Path], tmp_path: Path
) -> None:
    """What the file names is beside the file."""
    settings = load_aggregator(write_aggregator(tmp_path))
    assert settings.state == tmp_path / "state"
    assert settings.control_plane.token == tmp_path / "aggregator.token"


def test_one_port_twice_is_refused(write_aggregator: Callable[..., Path], tmp_path: Path) -> None:
    """Private and public cannot share a port."""
    with pytest.raises(SettingsError, match=r"fleet\.port and private\.port are both 8443"):
        load_aggregator(write_aggregator(tmp_path, fleet_port=8443, private_port=8443))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"registry": "missing.json"}, "registry of enrolled hospitals"),
        ({"certificate": "missing.crt"}, "missing.crt: cannot be read"),
        ({"control_plane": "http://127.0.0.1:1"}, "control_plane.url"),
    ],
)
def test_mistake_is_one_sentence(
    write_aggregator: Callable[..., Path],
    tmp_path: Path,
    override: dict[str, str],
    words: str,
) -> None:
    """A wrong setting ends the start with a sentence; nothing is left running."""
    path = str(write_aggregator(tmp_path, **override))
    result = subprocess.run(
        [sys.executable, "-m", "server.main", "--settings", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_secret_is_made_once_and_kept_to_itself(tmp_path: Path) -> None:
    """Mode 0600, the same at the second look; one that everybody can read is refused."""
    path = tmp_path / "secret"
    assert ensure_secret(path) == ensure_secret(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="mode 644"):
        read_secret(path)
