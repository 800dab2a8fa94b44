"""A hospital enrols, trains, is renewed in the middle of a round and revoked in the next.

Real processes, real certificates, through the command line; once with the aggregator's own guard
in front, once behind the edge (HAProxy). Counted: messages lost while certificates are replaced,
and seconds from the revocation to the first refusal.
"""

import base64
import datetime
import json
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import tomli_w
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from certs.inspection import report_certificate
from fedward.demo import MODEL
from fedward.embedded.corpus import write_hospital_data
from fedward.federation import Layout
from protocol.events import Event, RoundFinished, RoundStarted, SiteResult
from protocol.states import Reason, SiteOutcome, TrainerState

from .conftest import Running, fedward
from .hospital import Newcomer, Watch, edge_of, serial_at

REFUSED_SECONDS = 10.0
LOCAL = ("st-mary", "riverside")
STUDY = {
    "name": "certificates",
    "model": {"base": str(MODEL), "quantization": "nf4"},
    "adapter": {"rank": 4, "alpha": 8},
    "training": {"steps": 60, "batch_size": 16, "learning_rate": 1e-3, "max_length": 128},
    "evaluation": {"max_examples": 16},
    "rounds": {"count": 4, "minimum_sites": 2, "deadline_seconds": 300, "join_seconds": 120},
}


@pytest.fixture(params=["guard", "edge"])
def joined(
    request: pytest.FixtureRequest, up: Callable[..., Running], tmp_path: Path
) -> Iterator[tuple[Running, Newcomer]]:
    """A running federation of two hospitals, and a third that has just enrolled in it."""
    if request.param == "edge" and not shutil.which("haproxy"):
        pytest.skip("no haproxy binary on this machine")
    data = write_hospital_data(tmp_path / "data", [*LOCAL, "newcomer"])
    sites = {
        name: {
            "data": {"train": [str(data.train[name])], "heldout": [str(data.held_out)]},
            "device": "cpu",
        }
        for name in LOCAL
    }
    running = up(tomli_w.dumps({"sites": sites}))
    with ExitStack() as stack:
        port = running.federation.ports["fleet"]
        if request.param == "edge":
            port = stack.enter_context(edge_of(running, tmp_path / "edge"))
        home = tmp_path / "n"
        home.mkdir()
        new = Newcomer(running, "newcomer", home, f"127.0.0.1:{port}")
        new.approve(new.enrol())
        new.install("--site-toml", str(new.site_toml), "--train", str(data.train["newcomer"]))
        new.settle(data.train["newcomer"], data.held_out)
        new.start()
        stack.callback(new.stop)
        running.wait("the newcomer is online", lambda: online(running, "newcomer"))
        yield running, new


@pytest.mark.timeout(900)
def test_a_hospital_enrols_trains_is_rotated_and_is_revoked(
    joined: tuple[Running, Newcomer], tmp_path: Path
) -> None:
    """No message is lost to new certificates; a revoked site is out within 10 s, for good."""
    running, new = joined
    study = submit(running, tmp_path)

    wait_for_training(running, study, 1)
    seen_at = rotate_everything(running, new)
    wait_for_training(running, study, 2)
    fedward("certs", "rotate", "--ca", folder=running.folder)
    renew(new)
    moved = serials(running, new)
    running.wait("the leaf of the new root is on the wire", lambda: on_the_wire(running, moved))

    wait_for_training(running, study, 3)
    seconds = revoke(running, new)
    running.wait("the end of the study", lambda: running.plane.study(study).state.ended, 600)

    events = running.plane.events(study)
    lost = [result for result in results(events, 1, 2) if not arrived(result)]
    assert lost == []
    assert len(results(events, 1, 2)) == 6
    assert seen_at < finished_at(events, 1)
    third = {result.site: result for result in results(events, 3)}
    assert (third["newcomer"].outcome, third["newcomer"].reason) == (
        SiteOutcome.REFUSED,
        Reason.REVOKED,
    )
    assert {site for site, result in third.items() if arrived(result)} == set(LOCAL)
    assert {result.site for result in results(events, 4)} == set(LOCAL)
    assert running.plane.study(study).state == "finished"
    print(f"\n0 of {len(results(events, 1, 2))} messages lost during rotation")
    print(f"refused {seconds:.1f} s after the revocation")
    assert seconds <= REFUSED_SECONDS

    its_log_says_so(running, new)
    it_is_counted(running, new)
    it_stays_out_after_a_restart(running, new)


# -- the steps ---------------------------------------------------------------------------------


def submit(running: Running, folder: Path) -> str:
    """Queue the study; its id."""
    file = folder / "study.toml"
    file.write_text(tomli_w.dumps(STUDY))
    done = fedward("run", str(file), "--detach", "--json", folder=running.folder)
    return str(json.loads(done.stdout)["study_id"])


def wait_for_training(running: Running, study: str, number: int) -> None:
    """Until the newcomer trains in round `number`."""

    def trains() -> bool:
        node = node_of(running, "newcomer")
        progress = node.progress if node else None
        return bool(
            running.plane.study(study).round >= number
            and progress
            and progress.round >= number
            and progress.health.state is TrainerState.TRAINING
        )

    running.wait(f"round {number} trains", trains, seconds=300)


def rotate_everything(running: Running, new: Newcomer) -> float:
    """New leaves, valid for minutes, for the servers and the hospital; when they were seen."""
    before = serials(running, new)
    fedward("certs", "rotate", "--valid", "20m", folder=running.folder)
    after = serials(running, new)
    assert set(before.values()).isdisjoint(after.values())
    running.wait("new serials on the wire", lambda: on_the_wire(running, after), REFUSED_SECONDS)
    seen_at = datetime.datetime.now().timestamp()
    renew(new, "--valid", "20m")
    return seen_at


def renew(new: Newcomer, *words: str) -> None:
    """The hospital asks again with its keys, and installs what comes back; nothing restarts."""
    running = {process.pid for process in new.processes}
    new.approve(new.enrol(), "--renew", *words)
    assert new.install()["renewed"] is True
    assert all(process.poll() is None for process in new.processes)
    assert running == {process.pid for process in new.processes}


def revoke(running: Running, new: Newcomer) -> float:
    """Shut it out; seconds from the change of the registry to the first refusal."""
    port = int(new.aggregator.rpartition(":")[2])
    watch = Watch(lambda: refused(running, new, port))
    fedward("certs", "revoke", "newcomer", "--reason", "a test", folder=running.folder)
    changed = (Layout(running.folder).certs / "registry" / "sites.json").stat().st_mtime
    return max(0.0, watch.wait(60) - changed)


def its_log_says_so(running: Running, new: Newcomer) -> None:
    """In a sentence, with the moment: the guard's own words, or the log's time at the edge."""
    running.wait("its link says so", lambda: "revoked" in new.log, 60)
    line = next(line for line in new.log.splitlines() if "revoked" in line)
    assert str(datetime.datetime.now(datetime.UTC).year) in line


def it_is_counted(running: Running, new: Newcomer) -> None:
    """The control plane shows it as revoked, and what it still tries."""
    node = node_of(running, "newcomer")
    assert node is not None
    assert node.revoked
    if running.federation.ports["fleet"] == int(new.aggregator.rpartition(":")[2]):  # no edge
        running.wait("refusals are counted", lambda: refusals(running) > 0, 30)
    running.wait("its node is out of Flower's list", lambda: not online(running, "newcomer"), 30)
    acts = json.loads(fedward("certs", "audit", "--json", folder=running.folder).stdout)
    done = [act["act"] for act in acts]
    assert done.index("study_submitted") < done.index("rotate-server") < done.index("revoke")
    assert [act["act"] for act in acts if act["subject"] == "newcomer"] == [
        "approve",
        "renew",
        "renew",
        "revoke",
    ]


def it_stays_out_after_a_restart(running: Running, new: Newcomer) -> None:
    """Everything is stopped and started; the signed request of its node is refused as before."""
    fedward("down", folder=running.folder)
    fedward("up", folder=running.folder)
    port = running.federation.ports["fleet"]
    running.wait("the aggregator answers", lambda: answers(running, new, port))
    status, body = ask(running, new, port)
    assert (status, body.get("code")) == (401, "revoked")
    assert body["revoked_at"]


# -- looking -----------------------------------------------------------------------------------


def node_of(running: Running, site: str):  # type: ignore[no-untyped-def]
    """The control plane's view of a hospital."""
    return next((node for node in running.plane.nodes() if node.site == site), None)


def refusals(running: Running) -> int:
    """Requests of the newcomer that the guard refused."""
    node = node_of(running, "newcomer")
    return node.refused_requests if node else 0


def online(running: Running, site: str) -> bool:
    """Whether its node is up."""
    node = node_of(running, site)
    return node is not None and node.status == "online"


def serials(running: Running, new: Newcomer) -> dict[int, str]:
    """The serial that each listener has on disk, by port."""
    certs, ports = Layout(running.folder).certs, running.federation.ports
    aggregator = report_certificate(certs / "aggregator" / "server.crt").serial
    plane = report_certificate(certs / "control-plane" / "server.crt").serial
    edge = int(new.aggregator.rpartition(":")[2])
    return {
        ports["fleet"]: aggregator,
        ports["private"]: aggregator,
        edge: aggregator,
        ports["control_plane"]: plane,
    }


def on_the_wire(running: Running, expected: dict[int, str]) -> bool:
    """Whether each listener shows the serial expected of it."""
    certs = Layout(running.folder).certs
    trust, pair = certs / "ca" / "trust.pem", certs / "operator" / "client.pem"
    return all(serial_at(port, trust, pair) == serial for port, serial in expected.items())


def refused(running: Running, new: Newcomer, port: int) -> bool:
    """Whether the newcomer's signed request is turned away."""
    try:
        status, body = ask(running, new, port)
    except (httpx.TransportError, ssl.SSLError):
        return True  # the edge ends the handshake
    return status == 401 and body.get("code") in {"revoked", "unknown_key"}


def answers(running: Running, new: Newcomer, port: int) -> bool:
    """Whether somebody listens at the port again."""
    try:
        return ask(running, new, port)[0] > 0
    except httpx.TransportError:
        return False


def ask(running: Running, new: Newcomer, port: int) -> tuple[int, dict[str, str]]:
    """A request as its SuperNode signs it, with its client certificate; status and answer."""
    key = load_ssh_private_key((new.keys / "node.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    now = datetime.datetime.now(datetime.UTC).isoformat()
    signature = key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))
    headers = {
        "flwr-public-key": base64.b64encode(public).decode(),
        "flwr-signature": base64.b64encode(signature).decode(),
        "flwr-timestamp": now,
        "content-type": "application/protobuf",
    }
    context = ssl.create_default_context(cafile=str(Layout(running.folder).certs / "ca/trust.pem"))
    context.load_cert_chain(new.keys / "client.pem")
    url = f"https://localhost:{port}/v1/fleet/send-node-heartbeat"
    with httpx.Client(verify=context, trust_env=False, timeout=10) as client:
        answer = client.post(url, headers=headers, content=b"")
    try:
        body = answer.json()
    except ValueError:
        body = {}
    return answer.status_code, body if isinstance(body, dict) else {}


def results(events: list[Event], *rounds: int) -> list[SiteResult]:
    """What became of each site in these rounds."""
    return [e for e in events if isinstance(e, SiteResult) and e.round in rounds]


def arrived(result: SiteResult) -> bool:
    """Whether the answer came at the first asking and counts."""
    return result.outcome is SiteOutcome.OK and result.resent == 0


def finished_at(events: list[Event], number: int) -> float:
    """When a round ended."""
    assert any(isinstance(e, RoundStarted) and e.round == number for e in events)
    return next(e.at for e in events if isinstance(e, RoundFinished) and e.round == number)
