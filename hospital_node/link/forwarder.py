"""Carries this site's connections to the aggregator's edge, with the site's client certificate.

    SuperNode, reporter --TLS--> 127.0.0.1:PORT --mutual TLS--> [HTTPS proxy] --> edge

    python -m hospital_node.link.forwarder --site site.toml --port N --certificate C --key K

A SuperNode cannot present a client certificate, and without one the edge does not even answer. So
the link's own connections come here, over loopback TLS, and each goes on over one of ours. Bytes
are passed on as they come and are not read: what travels is signed end to end.

Certificates are read again when their files change, so a renewal needs no restart: connections that
are open keep theirs, new ones have the new. A connection that cannot be made is answered with 503
and a sentence, which Flower takes as "try again"; the site's log has the same sentence, once.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import logging
import signal
import ssl
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from protocol.errors import FedwardError, SettingsError
from protocol.files import write_atomic
from protocol.site import AggregatorSettings, SiteSettings, load_site
from protocol.tls import TLS12_SUITES

log = logging.getLogger("fedward.link.forwarder")

CHUNK_BYTES = 64 << 10
CONNECT_SECONDS = 10.0
STATUS_SECONDS = 5.0

# What a TLS alert of the edge means for a hospital, by OpenSSL's name of the alert.
_ALERTS = {
    "CERTIFICATE_REVOKED": "this site's certificate was revoked; ask the coordinator",
    "CERTIFICATE_EXPIRED": "this site's certificate has expired (or the aggregator's revocation "
    "list has); renew it, or ask the coordinator",
    "UNKNOWN_CA": "the aggregator does not know the CA of this site's certificate; enrol again",
    "CERTIFICATE_REQUIRED": "the aggregator got no certificate of this site",
    "BAD_CERTIFICATE": "the aggregator does not accept this site's certificate; enrol again",
    "UNSUPPORTED_CERTIFICATE": "this site's certificate is not one for a client",
}


class UpstreamError(Exception):
    """The edge cannot be reached, or does not accept us; the text is a sentence for a log."""


@dataclass
class Counters:
    """What went through since the forwarder started."""

    started_at: float
    connections: int = 0
    bytes_up: int = 0  # to the aggregator
    bytes_down: int = 0
    refused: int = 0
    trouble: str = ""  # the newest refusal, until a connection works again
    last_answer_at: float = 0.0  # when the aggregator last sent anything


class ClientContext:
    """The TLS context of new connections, made again when a file it came from has changed."""

    def __init__(self, settings: AggregatorSettings) -> None:
        if settings.client_certificate is None:
            raise SettingsError("aggregator.client_certificate: the forwarder needs one")
        self._certificate = settings.client_certificate
        self._key = settings.client_key or settings.client_certificate
        self._ca = settings.ca_certificate
        self._stamp = self._stamps()
        self._context = self._make()

    def get(self) -> ssl.SSLContext:
        """The context of now. A pair that does not fit (half a renewal) is not taken over."""
        with contextlib.suppress(OSError, SettingsError):
            stamp = self._stamps()
            if stamp != self._stamp:
                self._context = self._make()
                self._stamp = stamp
                log.info("%s: read again", self._certificate)
        return self._context

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        try:
            found = [path.stat() for path in (self._certificate, self._key, self._ca)]
        except OSError as error:
            raise SettingsError(f"{error.filename}: cannot be read: {error.strerror}") from error
        return tuple((entry.st_ino, entry.st_mtime_ns, entry.st_size) for entry in found)

    def _make(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=str(self._ca))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"{self._certificate}: certificate, key ({self._key}) and CA ({self._ca}) cannot "
                f"be used: {error}"
            ) from error
        return context


class Forwarder:
    """One listener on loopback; each connection it takes becomes one to the edge."""

    def __init__(self, settings: AggregatorSettings, listener: ssl.SSLContext) -> None:
        self._host, port = settings.address.rsplit(":", 1)
        self._port = int(port)
        self._proxy = settings.proxy
        self._listener = listener
        self._client = ClientContext(settings)
        self.counters = Counters(started_at=time.time())

    async def listen(self, port: int) -> asyncio.Server:
        """Start to serve on 127.0.0.1."""
        return await asyncio.start_server(
            self._serve, "127.0.0.1", port, ssl=self._listener, limit=CHUNK_BYTES
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counters.connections += 1
        try:
            up_reader, up_writer = await self._connect()
        except UpstreamError as error:
            await self._refuse(reader, writer, str(error))
            return
        answered = asyncio.Event()
        up = asyncio.create_task(self._ask(reader, up_writer))
        down = asyncio.create_task(self._answer(up_reader, writer, answered))
        try:
            # HTTP/1.1 has no use for a half-closed connection: when one side ends, so does all.
            done, _ = await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            errors = [task.exception() for task in done]
            refusal = next((error for error in errors if isinstance(error, ssl.SSLError)), None)
            if refusal is not None and not answered.is_set():
                # TLS 1.3 tells a client that it is refused only after the handshake.
                up.cancel()
                await self._refuse(None, writer, explain(refusal))
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            for stream in (up_writer, writer):
                await _close(stream)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the edge, through the site's proxy if there is one."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if not self._proxy:
                    return await asyncio.open_connection(
                        self._host,
                        self._port,
                        ssl=self._client.get(),
                        server_hostname=self._host.strip("[]"),
                        limit=CHUNK_BYTES,
                    )
                reader, writer = await self._tunnel(self._proxy)
                await writer.start_tls(self._client.get(), server_hostname=self._host.strip("[]"))
                return reader, writer
        except ssl.SSLError as error:
            raise UpstreamError(explain(error)) from error
        except TimeoutError as error:
            raise UpstreamError(
                f"{self._host}:{self._port} does not answer within {CONNECT_SECONDS:.0f} s"
            ) from error
        except OSError as error:
            raise UpstreamError(f"cannot reach {self._host}:{self._port}: {error}") from error

    async def _tunnel(self, proxy: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """HTTP CONNECT (RFC 9110, 9.3.6) through the site's proxy."""
        url = urlsplit(proxy)
        target = f"{self._host}:{self._port}"
        reader, writer = await asyncio.open_connection(url.hostname, url.port or 3128)
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if url.username is not None:
            pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
        writer.write("\r\n".join([*lines, "", ""]).encode())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            await _close(writer)
            raise UpstreamError(f"the proxy {url.hostname} does not answer as a proxy") from error
        status = head.split(b"\r\n", 1)[0].split(b" ", 2)
        if len(status) < 2 or not status[1].startswith(b"2"):
            await _close(writer)
            told = b" ".join(status[1:]).decode(errors="replace")
            raise UpstreamError(f"the proxy {url.hostname} refuses {target}: {told}")
        return reader, writer

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on to the aggregator; `drain` holds the sender to the pace of the receiver."""
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            self.counters.bytes_up += len(data)
            await writer.drain()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answered: asyncio.Event
    ) -> None:
        """Pass on from the aggregator."""
        while data := await reader.read(CHUNK_BYTES):
            answered.set()
            writer.write(data)
            self.counters.bytes_down += len(data)
            self.counters.last_answer_at = time.time()
            self._tell("")
            await writer.drain()

    async def _refuse(
        self, reader: asyncio.StreamReader | None, writer: asyncio.StreamWriter, why: str
    ) -> None:
        """Answer for the edge. 503 is retried by Flower; a closed connection ends some clients."""
        self.counters.refused += 1
        self._tell(why)
        body = f"{why}\n".encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                if reader is not None:  # a client looks for an answer once it has asked
                    await reader.read(CHUNK_BYTES)
                writer.write(head.encode() + body)
                await writer.drain()
        await _close(writer)

    def _tell(self, trouble: str) -> None:
        if trouble != self.counters.trouble:
            log.log(
                logging.ERROR if trouble else logging.INFO,
                "%s",
                trouble or "the aggregator answers again",
            )
            self.counters.trouble = trouble


def explain(error: ssl.SSLError) -> str:
    """A sentence for a failed handshake, from either side."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the aggregator's certificate is not acceptable: {error.verify_message}"
    name = error.reason or ""
    for alert, sentence in _ALERTS.items():
        if name.endswith(alert):
            return sentence
    return f"no TLS connection to the aggregator: {name.lower().replace('_', ' ') or error}"


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
        async with asyncio.timeout(1.0):
            await writer.wait_closed()


async def run(site: SiteSettings, port: int, listener: ssl.SSLContext, status: Path) -> None:
    """Serve until SIGTERM; write the counters to `status` as it goes."""
    forwarder = Forwarder(site.aggregator, listener)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await forwarder.listen(port)
    log.info("%s: forwarding to %s", site.name, site.aggregator.address)
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), STATUS_SECONDS)
        with contextlib.suppress(OSError):  # a full disk must not end the link
            write_atomic(status, json.dumps(asdict(forwarder.counters), indent=1).encode())
    server.close()


def main() -> int:
    """Parse arguments, serve."""
    parser = argparse.ArgumentParser(prog="python -m hospital_node.link.forwarder")
    parser.add_argument("--site", type=Path, required=True, help="this hospital's site.toml")
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--certificate", type=Path, required=True, help="of the listener (PEM)")
    parser.add_argument("--key", type=Path, required=True, help="of the listener (PEM)")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr
    )
    try:
        site = load_site(arguments.site)
        listener = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        listener.minimum_version = ssl.TLSVersion.TLSv1_2
        listener.set_ciphers(TLS12_SUITES)
        listener.load_cert_chain(arguments.certificate, arguments.key)
        status = site.state / "link" / "forwarder.json"
        asyncio.run(run(site, arguments.port, listener, status))
    except FedwardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
