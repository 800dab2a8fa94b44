"""Link and trainer in two pods: TLS where each accepts one certificate and nothing else."""

import datetime
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from hospital_node.link import client_app, trainer_client
from hospital_node.link.trainer_client import exchange, status
from hospital_node.trainer.listener import RemoteListener, SocketError
from protocol import pinned
from protocol.envelope import Envelope
from protocol.framing import Kind, receive, send
from protocol.site import RemoteSettings, TrainerSettings, load_site

REQUEST = Envelope(b"{}", b"s" * 64, b"adapter")
REPLY = Envelope(b"[]", b"t" * 64, b"delta")


def make_pair(folder: Path, name: str, key: ec.EllipticCurvePrivateKey | None = None) -> None:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / f"{name}.key").write_bytes(pem)
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))


def answer(stream: socket.socket) -> None:
    while (frame := receive(stream)) is not None:
        send(stream, Kind.REPLY if frame[0] is Kind.REQUEST else Kind.PROGRESS, REPLY)


Start = Callable[[RemoteSettings], RemoteListener]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[RemoteListener] = []

    def begin(settings: RemoteSettings) -> RemoteListener:
        running.append(RemoteListener(settings))
        running[-1].start(answer)
        return running[-1]

    yield begin
    for listener in running:
        listener.close()


@pytest.fixture
def settings(tmp_path: Path) -> RemoteSettings:
    for name in ("trainer", "link", "stranger"):
        make_pair(tmp_path, name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return RemoteSettings(
        address=f"127.0.0.1:{port}",
        trainer_certificate=tmp_path / "trainer.crt",
        trainer_key=tmp_path / "trainer.key",
        link_certificate=tmp_path / "link.crt",
        link_key=tmp_path / "link.key",
    )


def as_stranger(settings: RemoteSettings, tmp_path: Path) -> RemoteSettings:
    other = {
        "link_certificate": tmp_path / "stranger.crt",
        "link_key": tmp_path / "stranger.key",
    }
    return settings.model_copy(update=other)


def test_request_and_status_cross_the_network(settings: RemoteSettings, start: Start) -> None:
    """The link gets the same answers over TLS as over the Unix socket."""
    start(settings)
    assert exchange(settings, REQUEST) == REPLY
    assert status(settings) == REPLY


def test_a_stranger_gets_no_answer(settings: RemoteSettings, start: Start, tmp_path: Path) -> None:
    """Another certificate than the link's is refused before a frame is read."""
    start(settings)
    assert status(as_stranger(settings, tmp_path), timeout=2.0) is None
    assert status(settings) == REPLY


def test_no_certificate_no_answer(settings: RemoteSettings, start: Start) -> None:
    """Plain TCP, with or without a frame, gets no byte."""
    start(settings)
    with socket.create_connection((settings.host, settings.port), timeout=5) as stream:
        send(stream, Kind.STATUS, Envelope(b"", b""))
        stream.settimeout(5)
        try:
            data = stream.recv(1024)
        except ConnectionResetError:
            data = b""
        assert REPLY.payload not in data


def test_the_link_refuses_another_trainer(
    settings: RemoteSettings, start: Start, tmp_path: Path
) -> None:
    """A request is not given to whoever took the trainer's address."""
    impostor = {
        "trainer_certificate": tmp_path / "stranger.crt",
        "trainer_key": tmp_path / "stranger.key",
    }
    start(settings.model_copy(update=impostor))
    assert status(settings, timeout=2.0) is None
    with pytest.raises(trainer_client.TrainerUnreachableError, match=r"127\.0\.0\.1:"):
        exchange(settings, REQUEST, restart_seconds=0.1)


def test_a_new_pair_is_pinned_before_it_is_used(
    settings: RemoteSettings, start: Start, tmp_path: Path
) -> None:
    """The same key in another certificate is a stranger until the pin names both; no restart."""
    start(settings)
    key = load_pem_private_key((tmp_path / "link.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    before = (tmp_path / "link.crt").read_bytes()
    (tmp_path / "again").mkdir()
    make_pair(tmp_path / "again", "link", key)
    again = {
        "link_certificate": tmp_path / "again" / "link.crt",
        "link_key": tmp_path / "again" / "link.key",
    }
    assert status(settings.model_copy(update=again), timeout=2.0) is None
    (tmp_path / "link.crt").write_bytes(before + (tmp_path / "again" / "link.crt").read_bytes())
    assert status(settings.model_copy(update=again)) == REPLY


def test_a_dead_trainer_is_asked_again(settings: RemoteSettings, start: Start) -> None:
    """A request under way when the trainer dies is handed to its successor."""
    first = RemoteListener(settings)
    got = threading.Event()

    def die(stream: socket.socket) -> None:
        receive(stream)
        got.set()

    first.start(die)
    answers: list[Envelope] = []
    asking = threading.Thread(target=lambda: answers.append(exchange(settings, REQUEST)))
    asking.start()
    assert got.wait(5)
    first.close()
    until = time.monotonic() + 5
    while True:
        try:
            start(settings)
            break
        except SocketError:
            assert time.monotonic() < until
            time.sleep(0.05)
    asking.join(10)
    assert answers == [REPLY]


def test_a_taken_port_is_a_sentence(settings: RemoteSettings, start: Start) -> None:
    """Two trainers on one port: the second says which setting is wrong."""
    start(settings)
    with pytest.raises(SocketError, match=r"trainer\.remote\.address"):
        RemoteListener(settings)


def test_a_lost_key_is_no_traceback(settings: RemoteSettings, start: Start) -> None:
    """Without its key file the link reports a silent trainer, and the trainer stays up."""
    start(settings)
    assert status(settings.model_copy(update={"link_key": Path("/nowhere")})) is None
    settings.trainer_key.unlink()
    assert status(settings, timeout=2.0) is None


def test_the_client_app_is_told_where(
    settings: RemoteSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ClientApp's environment carries the address and paths, and no key."""
    trainer = TrainerSettings(signing_key=Path("signing.key"), remote=settings)
    told = client_app.variables(trainer)
    assert "PRIVATE" not in str(told)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert client_app._trainer() == settings


def test_keepalive_is_on(settings: RemoteSettings, start: Start) -> None:
    """A connection that waits an hour for a round notices a machine that is gone."""
    start(settings)
    with pinned.connect(
        settings.host,
        settings.port,
        certificate=settings.link_certificate,
        key=settings.link_key,
        peer=settings.trainer_certificate,
    ) as stream:
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert stream.gettimeout() is None


def test_paths_in_the_file_are_the_files(tmp_path: Path) -> None:
    """Relative paths of `trainer.remote` are from the folder of site.toml, as all others."""
    site = tmp_path / "site.toml"
    site.write_text(
        """
        name = "st-mary"
        aggregator = { address = "fl:8443", ca_certificate = "ca.crt", signing_key = "study.pub" }
        link = { node_key = "node.key" }
        data = { train = ["notes.jsonl"] }
        [trainer]
        signing_key = "signing.key"
        [trainer.remote]
        address = "trainer:9095"
        trainer_certificate = "tls/trainer.crt"
        trainer_key = "tls/trainer.key"
        link_certificate = "tls/link.crt"
        link_key = "/elsewhere/link.key"
        """
    )
    remote = load_site(site).trainer.remote
    assert remote is not None
    assert remote.trainer_certificate == tmp_path / "tls" / "trainer.crt"
    assert remote.link_key == Path("/elsewhere/link.key")
    assert remote.address == "trainer:9095"
