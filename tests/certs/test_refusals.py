"""Every bad thing in the table is refused with its documented sentence, and changes nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from certs import CertError
from certs.inspection import check_server_files
from certs.reference import reference
from certs.sentences import REFUSALS
from tests.certs import bad_bundles, bad_certificates, bad_keys, bad_requests
from tests.certs.judges import (
    CLIENT,
    DAY,
    NOW,
    craft,
    craft_root,
    openssl_verifies,
    write_pair,
    write_roots,
)
from tests.certs.workbench import TABLE, Act, Bench, new_bench

# Importing these enters their cases in the table.
CHAPTERS = (bad_keys, bad_certificates, bad_requests, bad_bundles)

ROOT = Path(__file__).parents[2]

# A leaf's faults that OpenSSL can see too: (our code, what to craft).
FAULTS: dict[str, tuple[str, dict[str, object]]] = {
    "expired": ("cert-expired", {"begin": NOW - 9 * DAY, "end": NOW - DAY}),
    "not yet valid": ("cert-not-yet", {"begin": NOW + DAY, "end": NOW + 9 * DAY}),
    "a client's": ("cert-usage", {"usages": (CLIENT,)}),
    "of no use": ("cert-usage", {"usages": (x509.ObjectIdentifier("1.2.3.4"),)}),
    "for another name": ("cert-names", {"names": (x509.DNSName("fl.example.org"),)}),
    "for a lookalike": ("cert-names", {"names": (x509.DNSName("localhost.example.org"),)}),
    "without digital signature": ("cert-key-usage", {"signs_handshakes": False}),
    "with an unknown critical extension": (
        "cert-critical",
        {"extra": x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")},
    ),
}


def snapshot(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder and what is in it; locks and empty folders do not count."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path: path.read_bytes() for path in files if "lock" not in path.name}


def case_id(case: tuple[str, Callable[[Bench], Act]]) -> str:
    return f"{case[0]}:{case[1].__name__}"


@pytest.mark.parametrize("case", TABLE, ids=case_id)
def test_bad_thing_is_refused_with_its_sentence(
    case: tuple[str, Callable[[Bench], Act]], tmp_path: Path
) -> None:
    """One line, the documented sentence with its code and hint, and no file changed."""
    code, prepare = case
    act = prepare(new_bench(tmp_path))
    before = snapshot(tmp_path)
    with pytest.raises(CertError) as caught:
        act()
    error = caught.value
    assert error.code == code, str(error)
    refusal = REFUSALS[code]
    assert type(error) is refusal.kind
    assert re.fullmatch(_pattern(refusal.text), str(error)), str(error)
    assert re.fullmatch(_pattern(refusal.hint), error.hint)
    assert (str(error) + error.hint).isprintable()
    assert "Traceback" not in str(error)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("fault", FAULTS)
def test_openssl_refuses_the_same_leaf(fault: str, tmp_path: Path) -> None:
    """A leaf that we refuse is refused by OpenSSL as well; ours only says it better."""
    code, changes = FAULTS[fault]
    root = craft_root()
    roots = write_roots(tmp_path / "ca.crt", root)
    cert, key = write_pair(tmp_path, craft(root, **changes))  # type: ignore[arg-type]
    with pytest.raises(CertError) as caught:
        check_server_files(cert, key, roots, name="localhost")
    assert caught.value.code == code
    assert not openssl_verifies(cert, roots, "sslserver", "-verify_hostname", "localhost")


@pytest.mark.parametrize("fault", ["wrong CA", "same name", "no room", "not a CA", "ended CA"])
def test_openssl_refuses_the_same_chain(fault: str, tmp_path: Path) -> None:
    """A chain that we refuse is refused by OpenSSL as well."""
    root = craft_root()
    roots = write_roots(tmp_path / "ca.crt", root)
    middle = {"ca": True, "path_length": 0, "usages": None, "names": None}
    if fault == "wrong CA":
        code, chain = "cert-wrong-ca", [craft(craft_root("another CA"))]
    elif fault == "same name":
        code, chain = "cert-forged", [craft(craft_root())]
    elif fault == "no room":
        upper = craft(root, "upper", **middle)  # type: ignore[arg-type]
        lower = craft(upper, "lower", **middle)  # type: ignore[arg-type]
        code, chain = "cert-path", [craft(lower), lower, upper]
    elif fault == "not a CA":
        leaf = craft(root, "leaf")
        code, chain = "cert-path", [craft(leaf), leaf]
    else:
        times = {"begin": NOW - 9 * DAY, "end": NOW - DAY}
        ended = craft(root, "middle", **{**middle, **times})  # type: ignore[arg-type]
        code, chain = "cert-expired", [craft(ended), ended]
    cert, key = write_pair(tmp_path, *chain)
    with pytest.raises(CertError) as caught:
        check_server_files(cert, key, roots, name="localhost")
    assert caught.value.code == code
    assert not openssl_verifies(cert, roots, "sslserver")


def test_a_good_leaf_is_accepted_by_both(tmp_path: Path) -> None:
    """The default of `craft` has no fault, so each test above shows the fault that it names."""
    root = craft_root()
    middle = craft(root, "middle", ca=True, path_length=0, usages=None, names=None)
    roots = write_roots(tmp_path / "ca.crt", root)
    cert, key = write_pair(tmp_path, craft(middle), middle)
    report = check_server_files(cert, key, roots, name="LOCALHOST")
    assert report.names == ("localhost",)
    assert openssl_verifies(cert, roots, "sslserver", "-verify_hostname", "localhost")


def test_the_table_is_long_and_covers_every_sentence() -> None:
    """At least sixty bad things, and each documented sentence is met by one of them."""
    assert len(TABLE) >= 60
    assert {prepare.__module__ for _, prepare in TABLE} == {
        chapter.__name__ for chapter in CHAPTERS
    }
    met = {code for code, _ in TABLE} | {code for code, _ in FAULTS.values()}
    met |= {"cert-wrong-ca", "cert-forged", "cert-path", "cert-expired"}
    assert REFUSALS.keys() == met


def test_the_reference_page_is_up_to_date() -> None:
    """docs/security-refusals.md is what `python -m certs.reference` prints."""
    assert (ROOT / "docs" / "security-refusals.md").read_text() == reference()


def _pattern(text: str) -> str:
    """A regular expression for a sentence: each hole takes at least one character."""
    return "".join(
        ".+" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{[^}]*\})", text)
    )
