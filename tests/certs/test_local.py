"""`make_federation` makes a whole federation's keys in one call, and the second call keeps them."""

from pathlib import Path

from certs.local import make_federation


def test_second_call_changes_nothing(tmp_path: Path) -> None:
    """Making a federation again keeps every key and every certificate that is still good."""
    paths = make_federation(tmp_path, ["hospital-a", "hospital-b"])
    kept = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name not in {"crl.pem", "state.json"}
    }
    assert make_federation(tmp_path, ["hospital-a", "hospital-b"]) == paths
    assert {path: path.read_bytes() for path in kept} == kept
