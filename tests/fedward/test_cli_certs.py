"""`fedward node` and `fedward certs`: a hospital joins, renews, leaves and comes back."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.testing

from certs.enrolment import revoke
from certs.errors import CertError
from certs.sentences import REFUSALS
from fedward import cli
from fedward.coordinator import Coordinator, certificate_checks
from protocol.registry import load_registry
from protocol.site import load_site

AT = ("--aggregator", "fl.example.org:9092")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fedward(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Call:
    """Runs the CLI in this process; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> tuple[int, str, str]:
        code = cli._guarded(lambda: cli.app(list(words), standalone_mode=False))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def coordinator(fedward: Call, tmp_path: Path) -> Coordinator:
    """A CA for an aggregator elsewhere."""
    code, out, err = fedward("certs", "init", "--name", "fl.example.org")
    assert code == 0, out + err
    return Coordinator.open(tmp_path / ".fedward")


def ok(answer: tuple[int, str, str]) -> dict[str, object]:
    """The JSON of a command that went well."""
    code, out, err = answer
    assert code == 0, err
    found: dict[str, object] = json.loads(out)
    return found


def join(fedward: Call, site: str = "st-mary", *words: str) -> dict[str, object]:
    """Enrol, approve and install; what `node install` says."""
    keys = f"keys-{site}"
    made = ok(fedward("node", "enrol", site, "--keys", keys, "--json"))
    answer = fedward(
        *("certs", "approve", str(made["request"]), *AT, *words, "--json"),
        *("--fingerprint", str(made["fingerprint"])),
    )
    approved = ok(answer)
    return ok(fedward("node", "install", str(approved["bundle"]), "--keys", keys, "--json"))


def test_a_hospital_joins_with_four_commands(
    fedward: Call, coordinator: Coordinator, tmp_path: Path
) -> None:
    """init, enrol, approve, install: the list has it, and its site.toml can be read."""
    made = ok(fedward("node", "enrol", "st-mary", "--json"))
    digits = str(made["fingerprint"])
    assert re.fullmatch(r"([0-9a-f]{4}-){7}[0-9a-f]{4}", digits)
    words = ("certs", "approve", str(made["request"]), "--fingerprint", digits, *AT)
    assert fedward(*words)[0] == 0
    code, out, _ = fedward(
        *("node", "install", "st-mary-bundle.json", "--site-toml", "site.toml"),
        *("--train", "rows.jsonl"),
    )
    assert code == 0
    assert coordinator.ca.fingerprint in out
    site = load_site(tmp_path / "site.toml")
    assert (site.name, site.aggregator.address) == ("st-mary", "fl.example.org:9092")
    assert site.aggregator.client_certificate is not None
    assert site.link.node_key.exists()
    assert site.trainer.signing_key.exists()
    assert set(load_registry(coordinator.paths.sites_file).active()) == {"st-mary"}


def test_an_existing_site_toml_is_left_alone(fedward: Call, coordinator: Coordinator) -> None:
    """A hospital's own settings are never written over."""
    Path("site.toml").write_text("mine")
    code, _, err = fedward("node", "install", "x.json", "--site-toml", "site.toml")
    assert code == 2
    assert "left as it is" in err
    assert Path("site.toml").read_text() == "mine"


def test_approve_needs_the_digits_and_the_address(fedward: Call, coordinator: Coordinator) -> None:
    """Without the fingerprint, with a wrong one, or without an address nothing is entered."""
    made = ok(fedward("node", "enrol", "st-mary", "--json"))
    request = str(made["request"])
    assert fedward("certs", "approve", request, *AT)[0] == 3
    wrong = "-".join(["0000"] * 8)
    assert fedward("certs", "approve", request, *AT, "--fingerprint", wrong)[0] == 3
    code, _, err = fedward("certs", "approve", request, "--fingerprint", str(made["fingerprint"]))
    assert (code, "--aggregator HOST:PORT" in err) == (2, True)
    assert coordinator.sites() == {}


def test_a_hospital_renews_leaves_and_comes_back(fedward: Call, coordinator: Coordinator) -> None:
    """Each step as its hint says; every act is in the audit log."""
    join(fedward)
    code, _, err = fedward("certs", "approve", "keys-st-mary/request.json", *AT)
    assert (code, "--renew" in err) == (3, True)
    assert join(fedward, "st-mary", "--renew")["renewed"] is True
    revoked = ok(fedward("certs", "revoke", "st-mary", "--reason", "moved", "--json"))
    assert len(revoked["serials"]) == 2  # type: ignore[arg-type]
    code, _, err = fedward("certs", "approve", "keys-st-mary/request.json", *AT)
    assert (code, "--readmit" in err) == (3, True)
    ok(fedward("node", "enrol", "st-mary", "--keys", "keys-st-mary", "--new-keys", "--json"))
    assert join(fedward, "st-mary", "--readmit")["site"] == "st-mary"
    log = json.loads(fedward("certs", "audit", "--json")[1])
    assert [act["act"] for act in log] == ["approve", "renew", "revoke", "readmit"]
    listed = ok(fedward("certs", "list", "--json"))
    assert listed["sites"]["st-mary"]["revoked_at"] is None  # type: ignore[index]


def test_rotate_renews_everybody_and_says_until_when(
    fedward: Call, coordinator: Coordinator
) -> None:
    """New serials for both servers, the coordinator and the operator."""
    before = {name: report.serial for name, report in coordinator.certificates()}
    code, out, _ = fedward("certs", "rotate", "--valid", "12h")
    assert code == 0
    after = {name: report.serial for name, report in coordinator.certificates()}
    assert {name for name in before if before[name] == after[name]} == {"ca"}
    assert out.count("until") == 4


def test_the_ca_changes_in_three_steps(fedward: Call, coordinator: Coordinator) -> None:
    """Finishing is refused by name while a hospital still lives on the old root."""
    join(fedward)
    begun = ok(fedward("certs", "rotate", "--ca", "--json"))
    assert begun["renew_for_new_ca"] == ["st-mary"]
    code, _, err = fedward("certs", "rotate", "--ca", "--finish")
    assert code == 2
    assert "renew these first: st-mary" in err + REFUSALS["rollover-needed"].hint.format(
        names="st-mary"
    )
    join(fedward, "st-mary", "--renew")
    finished = ok(fedward("certs", "rotate", "--ca", "--finish", "--json"))
    assert finished["ca_fingerprint"] == begun["ca_fingerprint"]
    assert Path("keys-st-mary/ca.crt").read_text().count("BEGIN CERTIFICATE") == 2


def test_an_encrypted_ca_asks_for_its_passphrase(fedward: Call, tmp_path: Path) -> None:
    """Nothing is signed without it, and everything works with it."""
    (tmp_path / "pass").write_text("correct horse\n")
    locked = ("--folder", "locked")
    opened = (*locked, "--passphrase-file", "pass")
    assert fedward("certs", "init", "--name", "localhost", *opened, "--intermediate")[0] == 0
    code, _, err = fedward("certs", "rotate", *locked)
    assert (code, "encrypted" in err) == (2, True)
    code, _, err = fedward("certs", "rotate", *opened)
    assert code == 0, err


@pytest.mark.parametrize(
    "words",
    [
        ("rotate", "--finish"),
        ("rotate", "--ca", "--crl"),
        ("rotate", "--valid", "soon"),
        ("rotate", "--valid", "0d"),
        ("revoke", "nobody"),
        ("approve", "missing.json", *AT),
        ("init", "--name", "a b"),
        ("init", "--name", "other.example.org"),
    ],
)
def test_a_mistake_is_one_sentence(
    fedward: Call, coordinator: Coordinator, words: tuple[str, ...]
) -> None:
    """A next step where there is one, an exit code, and nothing is changed."""
    before = {name: report.serial for name, report in coordinator.certificates()}
    code, out, err = fedward("certs", *words)
    assert code in (2, 3)
    assert err.startswith("error: ")
    assert "Traceback" not in out + err
    assert before == {name: report.serial for name, report in coordinator.certificates()}


def test_the_doctor_speaks_at_thirty_seven_and_one(fedward: Call, coordinator: Coordinator) -> None:
    """Said from 30 days on, urged with the command from 7, a fault on the last day."""
    join(fedward, "st-mary", "--valid", "6d")
    join(fedward, "riverside", "--valid", "12h")
    fedward("certs", "rotate", "--valid", "20d")
    found = dict(certificate_checks(Path(".fedward")))
    assert found["ca"].ok
    assert "left" not in found["ca"].sentence
    assert "(19 days left)" in found["aggregator"].sentence
    assert found["st-mary"].ok
    assert "--renew" in found["st-mary"].sentence
    assert not found["riverside"].ok
    assert "ends within a day" in found["riverside"].sentence
    assert "--renew" in found["riverside"].hint


@pytest.mark.parametrize(
    "command",
    ["node enrol", "node install", "certs init", "certs approve", "certs list", "certs revoke",
     "certs rotate", "certs audit"],
)  # fmt: skip
def test_help_teaches(command: str) -> None:
    """Every command says what it is for, and has a description for each option."""
    result = typer.testing.CliRunner().invoke(cli.app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert len(result.output) > 400


def test_every_command_that_a_hint_names_exists() -> None:
    """The library's hints name commands and options; each is there."""
    runner = typer.testing.CliRunner(env={"COLUMNS": "200"})
    hints = " ".join(refusal.hint + " " + refusal.text for refusal in REFUSALS.values())
    for group, verb, rest in re.findall(r"fedward (node|certs) (\w+)([^`]*)`", hints):
        shown = runner.invoke(cli.app, [group, verb, "--help"])
        assert shown.exit_code == 0, (group, verb)
        for option in re.findall(r"--[\w-]+", rest):
            assert option in shown.output, (group, verb, option)


def test_a_revoked_site_stays_so_when_asked_twice(fedward: Call, coordinator: Coordinator) -> None:
    """The first moment is kept; an unknown site is refused by name."""
    join(fedward)
    first = ok(fedward("certs", "revoke", "st-mary", "--json"))
    assert ok(fedward("certs", "revoke", "st-mary", "--json")) == first
    with pytest.raises(CertError, match="nobody"):
        revoke(coordinator.ca, "nobody", coordinator.registry)
