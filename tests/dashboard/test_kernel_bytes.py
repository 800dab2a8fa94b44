"""Our bytes against the kernel's: a hospital's link in a network namespace of its own.

    namespace: link, SuperNode  --veth pair-->  host: aggregator        trainer: Unix socket only

All that the hospital sends and receives crosses the pair, so the interface's counters are the truth
about the line: payload + Flower's and HTTP's framing + TLS + TCP and IP headers + reports.
"""

import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w

from certs import CA
from certs.rotation import rotate_server
from protocol.children import python_module
from protocol.states import StudyState

from .live import Parts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SITE = "alder"
RANK, ROUNDS = 96, 4  # 5 MB an adapter: what is not adapter has to be small beside it


class Line:
    """A veth pair between the host and a new namespace."""

    def __init__(self) -> None:
        self.name = f"fw{os.getpid() % 100_000}"
        self.outer, self.inner = f"{self.name}o", f"{self.name}i"
        net = 64 + os.getpid() % 64
        self.host, hospital = f"100.{net}.77.1", f"100.{net}.77.2"  # RFC 6598: nobody's own
        self._ip("netns", "add", self.name)
        self._ip("link", "add", self.outer, "type", "veth", "peer", self.inner, "netns", self.name)
        self._ip("address", "add", f"{self.host}/30", "dev", self.outer)
        self._ip("link", "set", self.outer, "up")
        for words in (
            ("address", "add", f"{hospital}/30", "dev", self.inner),
            ("link", "set", self.inner, "up"),
            ("link", "set", "lo", "up"),
        ):
            self._ip("-n", self.name, *words)

    def counted(self) -> tuple[int, int]:
        """Bytes from the hospital and to it."""
        folder = Path("/sys/class/net") / self.outer / "statistics"
        return int((folder / "rx_bytes").read_text()), int((folder / "tx_bytes").read_text())

    def close(self) -> None:
        """Take it away; the pair goes with the namespace."""
        self._ip("netns", "delete", self.name)

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def line() -> Iterator[Line]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and iproute2")
    try:
        made = Line()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield made
    made.close()


@pytest.fixture
def parts(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """A federation of one hospital whose link lives at the other end of the line."""
    made = Parts(tmp_path_factory.mktemp("n"), (SITE,))
    names = ("localhost", "127.0.0.1", line.host)
    ca = CA.load(made.paths.ca_folder)
    rotate_server(ca, made.paths.aggregator.folder, made.paths.registry, names=names)
    _change(made.layout.aggregator / "aggregator.toml", "fleet", host=line.host)
    site = made.layout.site(SITE) / "site.toml"
    address = f"{line.host}:{made.federation.ports['fleet']}"
    _change(site, "aggregator", address=address)
    _change(site, "link", report_seconds=2.0)
    made.children[f"{SITE}-link"].command = lambda: [
        *("ip", "netns", "exec", line.name),
        *python_module("hospital_node.link", "--site", str(site)),
    ]
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_payload_and_wire_are_what_the_kernel_counts(
    line: Line, parts: Parts, record_property: Callable[[str, object], None]
) -> None:
    """Both are within 5 % of the interface's counters, each way, over a whole study."""
    before = line.counted()
    study_id = parts.study(
        "weighed",
        adapter={"rank": RANK, "alpha": RANK},
        training={"steps": 1},
        evaluation={"max_examples": 2},
        rounds={"count": ROUNDS},
    )
    wire_before = _wire(parts)
    parts.wait("its end", lambda: parts.plane.study(study_id).state.ended, 300)
    time.sleep(3)  # the guard's counters come with the next snapshot of the nodes
    kernel = [now - then for now, then in zip(line.counted(), before, strict=True)]
    wire = [now - then for now, then in zip(_wire(parts), wire_before, strict=True)]
    study = parts.plane.study(study_id)
    assert study.state is StudyState.FINISHED, study.verdict
    (site,) = study.sites
    for way, payload, http, counted in zip(
        ("up", "down"), (site.bytes_up, site.bytes_down), wire, kernel, strict=True
    ):
        words = f"payload {payload:,}, HTTP {http:,}, kernel {counted:,}"
        print(f"{way}: {words}")
        record_property(way, words)
        assert payload < http < counted, words
        assert payload == pytest.approx(counted, rel=0.05), words
        assert http == pytest.approx(counted, rel=0.05), words


def _wire(parts: Parts) -> tuple[int, int]:
    """What the guard has counted of the hospital's HTTP, as the page shows it."""
    (node,) = [node for node in parts.plane.nodes() if node.site == SITE]
    return node.wire_bytes_in, node.wire_bytes_out


def _change(file: Path, section: str, **values: object) -> None:
    tree = tomllib.loads(file.read_text())
    tree[section] |= values
    file.write_text(tomli_w.dumps(tree))
