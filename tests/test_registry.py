"""One list of hospitals: what enrolment writes is what aggregator and control plane read."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from certs import CA, keys
from certs.enrolment import revoke
from certs.errors import CertError
from certs.local import make_federation
from certs.names import check_site
from certs.registry import Registry
from protocol.errors import SettingsError
from protocol.registry import load_registry
from protocol.study import Name

NAMES = [
    "a",
    "st-mary",
    "9",
    "x" * 63,
    "x" * 64,
    "",
    "-a",
    "a-",
    "St-Mary",
    "a b",
    "a/b",
    "a\n",
    "ä",
    "..",
    "a.b",
    "a_b",
]


def test_the_reader_finds_what_the_writer_wrote(tmp_path: Path) -> None:
    """Keys of both kinds, and who is revoked since when, through the one file."""
    paths = make_federation(tmp_path, ["hospital-a", "hospital-b"])
    registry = Registry(paths.registry)
    revoked = revoke(CA.load(paths.ca_folder), "hospital-b", registry, reason="moved away")
    read = load_registry(paths.sites_file)
    assert set(read.active()) == {"hospital-a"}
    assert set(read.revoked()) == {"hospital-b"}
    moment = read.sites["hospital-b"].revoked_at
    assert moment == datetime.strptime(revoked.when, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    for name, site in paths.sites.items():
        assert read.sites[name].node_public_key == site.node_public.read_text().strip()
        installed = keys.load_signing_public(site.signing_public)
        assert keys.spki(read.sites[name].verify_key) == keys.spki(installed)


def test_another_form_is_refused(tmp_path: Path) -> None:
    """A list of a later version is not half understood, by either side."""
    paths = make_federation(tmp_path, ["hospital-a"])
    body = json.loads(paths.sites_file.read_text())
    paths.sites_file.write_text(json.dumps(body | {"version": 2}))
    with pytest.raises(SettingsError, match="version"):
        load_registry(paths.sites_file)
    with pytest.raises(CertError, match="version 1"):
        Registry(paths.registry).sites()


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_have_one_rule_for_names(name: str) -> None:
    """A name that can be enrolled can stand in a study, and the reverse."""
    try:
        enrolled = check_site(name) == name
    except CertError:
        enrolled = False
    try:
        studied = TypeAdapter(Name).validate_python(name) == name
    except ValidationError:
        studied = False
    assert enrolled == studied
