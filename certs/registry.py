"""Who is enrolled: the coordinator's record of each site's keys, certificates and state.

`sites.json` is the one list of hospitals. It is written here and nowhere else; the aggregator, the
control plane and the edge read the same file (`protocol.registry`) to know whose node key may come
in and whose signature an update must bear. It holds public keys only.

    {"format": "fedward-site-registry", "version": 1,
     "sites": {"hospital-a": {"node_public_key": "ecdsa-sha2-nistp384 AAAA...",
                              "signing_public_key": "-----BEGIN PUBLIC KEY-----...",
                              "revoked_at": null, ...}}}
"""

import dataclasses
import datetime as dt
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519

from certs import keys
from certs._x509 import stamp
from certs.files import locked, make_folder, read_limited, write_atomic
from certs.leaf import Leaf
from certs.names import check_site
from certs.request import SiteKeys
from certs.sentences import refuse

FILE = "sites.json"
FORMAT = "fedward-site-registry"
VERSION = 1
MAX_REGISTRY_BYTES = 16 * 1024 * 1024


@dataclass
class SiteEntry:
    """One site. Times are UTC as `2026-03-01T12:00:00Z`; digests are SHA-256, hexadecimal."""

    node_public_key: str  # one OpenSSH line, as Flower registers it
    signing_public_key: str  # Ed25519, PEM: updates of this site must bear its signature
    client_key: str  # digest of the certificate's public key
    enrolled_at: str
    renewed_at: str = ""
    revoked_at: str | None = None  # from then on, nothing of the site is accepted
    reason: str = ""
    serials: list[str] = field(default_factory=list)  # hexadecimal, newest last
    not_after: str = ""  # of the newest certificate
    retired_keys: list[str] = field(default_factory=list)  # digests that may never come back

    @property
    def revoked(self) -> bool:
        """Whether its certificate, node key and signatures count no more."""
        return self.revoked_at is not None

    def digests(self) -> dict[str, str]:
        """The digests of the three keys, under the words that the sentences use."""
        node = keys.parse_node_public(self.node_public_key.encode(), FILE)
        signing = keys.parse_signing_public(self.signing_public_key.encode(), FILE)
        return {
            "client key": self.client_key,
            "node key": keys.public_digest(node),
            "signing key": keys.public_digest(signing),
        }


class Registry:
    """The sites of one study's coordinator, in `folder/sites.json`."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made when something is first written."""
        self.folder = folder

    @property
    def path(self) -> Path:
        """The file that holds it all."""
        return self.folder / FILE

    def sites(self) -> dict[str, SiteEntry]:
        """Every site ever enrolled, by name.

        Raises:
            CertError: `file-*`, `state-garbage`.
        """
        if not self.path.exists():
            return {}
        data = read_limited(self.path, limit=MAX_REGISTRY_BYTES)
        try:
            body = json.loads(data)
            if body["format"] != FORMAT or body["version"] != VERSION:
                raise ValueError(f"not {FORMAT} version {VERSION}")
            return {check_site(name): SiteEntry(**entry) for name, entry in body["sites"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise refuse("state-garbage", file=self.path, why=error) from error

    def site(self, name: str) -> SiteEntry:
        """One site.

        Raises:
            CertError: `site-unknown`.
        """
        entry = self.sites().get(name)
        if entry is None:
            raise refuse("site-unknown", site=name)
        return entry

    def signing_keys(self) -> dict[str, ed25519.Ed25519PublicKey]:
        """The signing key of every site that is enrolled now."""
        return {
            name: keys.parse_signing_public(entry.signing_public_key.encode(), self.path)
            for name, entry in self.sites().items()
            if not entry.revoked
        }

    def node_keys(self) -> dict[str, str]:
        """The node key (OpenSSH line) of every site that is enrolled now."""
        return {
            name: entry.node_public_key for name, entry in self.sites().items() if not entry.revoked
        }

    @contextmanager
    def changing(self) -> Iterator[dict[str, SiteEntry]]:
        """The sites, to be changed under the lock; written when the block ends without error."""
        make_folder(self.folder)
        with locked(self.folder):
            sites = self.sites()
            yield sites
            self._write(sites)

    def _write(self, sites: Mapping[str, SiteEntry]) -> None:
        body = {
            "format": FORMAT,
            "version": VERSION,
            "sites": {name: dataclasses.asdict(sites[name]) for name in sorted(sites)},
        }
        write_atomic(self.path, json.dumps(body, indent=1).encode() + b"\n", mode=0o640)


def new_entry(site: str, site_keys: SiteKeys, leaf: Leaf, now: dt.datetime) -> SiteEntry:
    """The entry of a site that enrols now."""
    return SiteEntry(
        node_public_key=keys.node_public_line(site_keys.node, site).decode().strip(),
        signing_public_key=keys.public_pem(site_keys.signing).decode(),
        client_key=keys.public_digest(site_keys.client),
        enrolled_at=stamp(now),
        serials=[leaf.serial],
        not_after=stamp(leaf.not_after),
    )


def continued(known: SiteEntry, entry: SiteEntry, *, renewed: bool) -> SiteEntry:
    """The entry of a site that was here before: renewed with its keys, or back with new ones."""
    if renewed:
        entry.renewed_at, entry.enrolled_at = entry.enrolled_at, known.enrolled_at
        entry.serials = [*known.serials, *entry.serials]
        entry.retired_keys = known.retired_keys
    else:
        entry.retired_keys = [*known.retired_keys, *known.digests().values()]
    return entry


def owner_of(sites: Mapping[str, SiteEntry], digest: str, *, but: str) -> str:
    """The site, other than `but`, that uses or used the key with this digest; empty if none."""
    for name, entry in sites.items():
        if name != but and (digest in entry.digests().values() or digest in entry.retired_keys):
            return name
    return ""
