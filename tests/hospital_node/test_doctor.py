"""The doctor: a healthy site passes, each ailment is named, and nothing is changed."""

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hospital_node import doctor
from hospital_node.doctor import Check, run_checks
from hospital_node.ledger import Ledger
from protocol.site import SiteSettings

from .lab import SiteFolder, Trainer, rows, write_jsonl


def certificate(days: int, *, starts: int = -1) -> bytes:
    """A CA certificate that ends in `days`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + datetime.timedelta(days=min(starts, days - 1)))
        .not_valid_after(now + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(Encoding.PEM)


def healthy(site: SiteFolder, **kwargs: str) -> SiteSettings:
    """Everything a site needs but a running trainer."""
    settings = site.settings(**kwargs)
    (site.home / "ca.pem").write_bytes(certificate(30))
    (site.home / "node.key").write_text("key")
    (site.home / "node.key").chmod(0o600)
    return settings


def failed(settings: SiteSettings) -> dict[str, Check]:
    """The checks that failed, but for the trainer that does not run."""
    return {
        check.name: check
        for check in run_checks(settings)
        if not check.ok and check.name != "trainer"
    }


def test_a_healthy_site_passes_and_is_not_touched(site: SiteFolder) -> None:
    """Every check has a sentence, and no file was written or changed."""
    settings = healthy(site)
    before = sorted((path, path.stat().st_mtime_ns) for path in site.home.rglob("*"))
    checks = run_checks(settings)
    assert sorted((path, path.stat().st_mtime_ns) for path in site.home.rglob("*")) == before
    by_name = {check.name: check for check in checks}
    assert [check.name for check in checks if not check.ok] == ["trainer"]
    assert "python -m hospital_node.trainer" in by_name["trainer"].hint
    assert by_name["training data"].sentence == "40 rows in 1 file(s)"
    assert "12 rows, 6 of them multiple choice" in by_name["held-out data"].sentence
    assert "sha256" in by_name["base model"].sentence
    assert "without a chat template" in by_name["tokenizer"].sentence
    assert all(check.sentence for check in checks)


def test_a_running_trainer_is_seen(start: Callable[..., Trainer], site: SiteFolder) -> None:
    """The socket check says which state it is in, whatever that is."""
    start(site)
    check = {c.name: c for c in run_checks(healthy(site))}["trainer"]
    assert check.ok, check
    assert "state" in check.sentence


def _ail(site: SiteFolder, what: str) -> None:
    home = site.home
    if what == "rows in both":
        write_jsonl(home / "heldout.jsonl", rows(3))
    elif what == "broken row":
        (home / "train.jsonl").write_text("Jane Roe\n")
    elif what == "open key":
        (home / "site.key").chmod(0o644)
    elif what == "no node key":
        (home / "node.key").unlink()
    elif what == "expired":
        (home / "ca.pem").write_bytes(certificate(-1))
    elif what == "future":
        (home / "ca.pem").write_bytes(certificate(30, starts=2))
    elif what == "no certificate":
        (home / "ca.pem").write_text("nothing")
    elif what == "open state":
        (home / "state").mkdir()
        (home / "state").chmod(0o755)
    elif what == "ledger":
        (home / "state").mkdir(mode=0o700)
        ledger = Ledger(home / "state/ledger.jsonl")
        ledger.append({"kind": "reply"})
        ledger.close()
        text = ledger.path.read_text().replace("reply", "other")
        ledger.path.write_text(text)


@pytest.mark.parametrize(
    ("what", "name", "sentence", "hint"),
    [
        ("rows in both", "held-out data", "3 of 3 held-out rows", "remove them"),
        ("broken row", "training data", "line 1: not valid JSON", ""),
        ("open key", "signing key", "mode 0644", "chmod 600"),
        ("no node key", "node key", "no such file", "enrolment writes it"),
        ("expired", "aggregator's CA", "expired on", "ask the coordinator"),
        ("future", "aggregator's CA", "ahead of this machine's clock", "set the clock"),
        ("no certificate", "aggregator's CA", "not a certificate in PEM format", ""),
        ("open state", "state folder", "mode 0755", "chmod 700"),
        ("ledger", "ledger", "line 1: the ledger was altered", "keep the file as evidence"),
    ],
)
def test_an_ailment_is_named(
    site: SiteFolder, what: str, name: str, sentence: str, hint: str
) -> None:
    """One check fails, with what is wrong and what to do, and quotes no record."""
    settings = healthy(site)
    _ail(site, what)
    found = failed(settings)
    # A broken row is found twice: the held-out check compares with the training rows.
    assert name in found
    assert set(found) <= {name, "held-out data"}
    assert sentence in found[name].sentence
    assert hint in found[name].hint
    assert "Jane" not in str(found)


def test_other_weights_are_named(site: SiteFolder) -> None:
    """A base that is not the pinned one fails before a study finds out."""
    settings = healthy(site)
    model = settings.model.model_copy(update={"sha256": "0" * 64})
    found = failed(settings.model_copy(update={"model": model}))
    assert "the weights hash to" in found["base model"].sentence


def test_a_missing_base_is_named(site: SiteFolder, tmp_path: Path) -> None:
    """model.path with a typo fails; no model.path is fine, the study names the base."""
    settings = healthy(site)
    model = settings.model.model_copy(update={"path": tmp_path / "gone"})
    found = failed(settings.model_copy(update={"model": model}))
    assert set(found) == {"base model", "tokenizer"}
    model = settings.model.model_copy(update={"path": None})
    assert failed(settings.model_copy(update={"model": model})) == {}


def test_a_small_disk_is_named(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less room than a ledger and a cache need fails with what would happen."""
    settings = healthy(site)
    monkeypatch.setattr(doctor, "_NEEDED_DISK_BYTES", 1 << 60)
    assert "nothing leaves this site" in failed(settings)["disk space"].hint
