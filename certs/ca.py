"""A certificate authority in a few nouns and verbs.

    ca = CA.create()                       # a root; `intermediate=True` puts a second CA below it
    ca.save(Path("ca"), passphrase="...")  # keys 0600, state.json, ca.crt, trust.pem, crl.pem
    ca.issue_server(["fl.example.org"])    # -> Leaf: key, certificate, chain
    ca.issue_client("hospital-a")          # -> Leaf, for a client only
    ca.revoke("hospital-a")                # -> crl.pem is written anew

A CA that was saved or loaded keeps its folder up to date by itself, under a lock; one that was
never saved lives in memory, which is what tests want.
"""

import contextlib
import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs import _x509, keys
from certs._state import Generation, Issued, Revoked, State
from certs._x509 import Issuer, stamp, utc_now
from certs.files import locked, make_folder, write_atomic, write_key
from certs.fingerprints import certificate_fingerprint
from certs.names import (
    Role,
    check_lifetime,
    check_role,
    check_server_names,
    check_site,
    identity_uri,
)
from certs.sentences import refuse

# Short, because revocation reaches only those who read the list, and expiry reaches everybody.
CA_LIFETIME = dt.timedelta(days=730)
INTERMEDIATE_LIFETIME = dt.timedelta(days=365)
LEAF_LIFETIME = dt.timedelta(days=30)
CRL_LIFETIME = dt.timedelta(days=7)
# The root's own list, when its key is offline: it can only ever revoke the intermediate.
ROOT_CRL_LIFETIME = dt.timedelta(days=365)

# Root, cross-signed new root, intermediate: two CAs may stand between a root and a leaf.
_ROOT_PATH, _CROSS_PATH, _INTERMEDIATE_PATH = 2, 1, 0


@dataclass(frozen=True)
class Leaf:
    """A certificate that a CA issued, with its chain, and its key when the CA made that too."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: keys.CertificateKey | None = None

    @property
    def serial(self) -> str:
        """The serial number, in lower-case hexadecimal."""
        return f"{self.certificate.serial_number:x}"

    @property
    def not_after(self) -> dt.datetime:
        """The last second of validity, UTC."""
        return self.certificate.not_valid_after_utc

    @property
    def certificate_pem(self) -> bytes:
        """The leaf and then its chain, in the order in which TLS sends them."""
        return _x509.pem(self.certificate, *self.chain)

    def write(self, folder: Path, stem: str) -> None:
        """Write `<stem>.crt` (leaf and chain), and with a key `<stem>.key` and `<stem>.pem`.

        `<stem>.pem` holds key and chain in one file: a process that reloads while a rotation
        writes sees either the old pair or the new, never one half of each.
        """
        if self.key is not None:
            private = keys.private_pem(self.key)
            write_key(folder / f"{stem}.pem", private + self.certificate_pem)
            write_key(folder / f"{stem}.key", private)
        write_atomic(folder / f"{stem}.crt", self.certificate_pem)


class CA:
    """A root, an optional intermediate below it, and the record of what they signed."""

    def __init__(
        self,
        state: State,
        held: dict[str, ec.EllipticCurvePrivateKey],
        *,
        folder: Path | None = None,
        passphrase: str = "",
    ) -> None:
        """Use `CA.create` or `CA.load`; this only puts the parts together."""
        self._state = state
        self._keys = held
        self._folder = folder
        self._passphrase = passphrase

    # Make, save, load ------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        name: str = "fedward",
        *,
        curve: str = "P-256",
        lifetime: dt.timedelta = CA_LIFETIME,
        intermediate: bool = False,
        crl_url: str = "",
        now: dt.datetime | None = None,
    ) -> "CA":
        """A new CA in memory.

        Args:
            name: shown in the subject, with a few random digits, so that two CAs never share one.
            curve: P-256 or P-384.
            lifetime: of the root; the intermediate's is a year at most.
            intermediate: sign leaves with a CA below the root, so that the root's key can be kept
                offline.
            crl_url: where clients find the revocation list; put into every leaf when given.
            now: the time, for tests.

        Raises:
            CertError: `curve`, `lifetime`.
        """
        now = now or utc_now()
        generation, held = _new_generation(name, curve, check_lifetime(lifetime), now)
        ca = cls(State([generation], crl_url), held)
        if intermediate:
            ca._add_intermediate(name, curve, now)
        return ca

    def save(self, folder: Path, *, passphrase: str = "", root_passphrase: str = "") -> "CA":
        """Write the CA to `folder`, and keep it up to date there from now on.

        Args:
            folder: made when missing, 0700.
            passphrase: encrypts the key that signs leaves, and the root's too.
            root_passphrase: encrypts the root's key with another word than the intermediate's.

        Raises:
            CertError: `ca-exists`, `file-unwritable`.
        """
        make_folder(folder)
        with locked(folder):
            if (folder / "state.json").exists():
                raise refuse("ca-exists", folder=folder)
            for generation in self._state.generations:
                self._write_keys(folder, generation, passphrase, root_passphrase)
            self._state.write(folder)
        self._folder, self._passphrase = folder, passphrase
        self.write_public_files()
        return self

    @classmethod
    def load(cls, folder: Path, *, passphrase: str = "") -> "CA":
        """The CA in `folder`. Keys are read only when something is signed.

        Raises:
            CertError: `file-*`, `state-garbage`.
        """
        return cls(State.read(folder), {}, folder=folder, passphrase=passphrase)

    # Look ------------------------------------------------------------------------------------

    @property
    def root(self) -> x509.Certificate:
        """The current root certificate."""
        return self._current.root

    @property
    def previous_root(self) -> x509.Certificate | None:
        """The root that is being replaced, while a change of CA runs."""
        return self._state.generations[1].root if self.rolling else None

    @property
    def issuing(self) -> x509.Certificate:
        """The certificate whose key signs leaves: the intermediate's, or the root's."""
        return self._current.issuing

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates that go with a leaf: intermediate, and new root signed by the old."""
        return self._current.chain

    @property
    def rolling(self) -> bool:
        """Whether a change of CA runs, and two roots are trusted."""
        return len(self._state.generations) > 1

    @property
    def rollover_since(self) -> str:
        """When the running change of CA began; empty when none runs."""
        return self._state.rollover_since

    @property
    def fingerprint(self) -> str:
        """What a person compares by telephone: 8 groups of 4 hexadecimal digits."""
        return certificate_fingerprint(self.root)

    @property
    def crl_url(self) -> str:
        """Where clients find the revocation list; may be empty."""
        return self._state.crl_url

    @property
    def trust_pem(self) -> bytes:
        """All roots to trust now, the current one first."""
        return _x509.pem(*(generation.root for generation in self._state.generations))

    @property
    def links_pem(self) -> bytes:
        """The new root signed by the old, while a change of CA runs; else nothing."""
        return _x509.pem(*((self._current.cross,) if self._current.cross else ()))

    @property
    def revoked(self) -> list[Revoked]:
        """Every revoked certificate that has not ended yet, of all roots."""
        return [entry for generation in self._state.generations for entry in generation.revoked]

    def issued(self, *, previous: bool = False) -> list[Issued]:
        """What the current root (or the one before it) has signed and has not ended yet."""
        generations = self._state.generations[1:] if previous else self._state.generations[:1]
        return [entry for generation in generations for entry in generation.issued]

    # Issue -----------------------------------------------------------------------------------

    def issue_server(
        self,
        names: Sequence[str],
        lifetime: dt.timedelta = LEAF_LIFETIME,
        *,
        key: ec.EllipticCurvePrivateKey | None = None,
        now: dt.datetime | None = None,
    ) -> Leaf:
        """A server's certificate for DNS names and IP addresses, and its key.

        Raises:
            CertError: `name-server`, `name-server-none`, `lifetime`, `ca-expired`, `ca-offline`.
        """
        names = check_server_names(names)
        key = key or keys.new_certificate_key()
        subject = _x509.subject(names[0], "server")
        certificate = self._issue(
            subject, key.public_key(), _x509.SERVER, names[0], "server",
            _x509.general_names(names), lifetime, now,
        )  # fmt: skip
        return Leaf(certificate, self.chain, key)

    def issue_client(
        self,
        name: str,
        role: str = Role.HOSPITAL,
        lifetime: dt.timedelta = LEAF_LIFETIME,
        *,
        key: ec.EllipticCurvePrivateKey | None = None,
        now: dt.datetime | None = None,
    ) -> Leaf:
        """A client's certificate for a hospital, a coordinator or an operator, and its key.

        Raises:
            CertError: `name-site`, `name-role`, `lifetime`, `ca-expired`, `ca-offline`.
        """
        key = key or keys.new_certificate_key()
        certificate = self._issue_client(name, role, key.public_key(), lifetime, now)
        return Leaf(certificate, self.chain, key)

    def sign_request(
        self,
        csr: x509.CertificateSigningRequest,
        name: str,
        role: str = Role.HOSPITAL,
        lifetime: dt.timedelta = LEAF_LIFETIME,
        *,
        now: dt.datetime | None = None,
    ) -> Leaf:
        """A client's certificate for the key in `csr`.

        Only the key is taken from the request, never a name or an extension: `name` and `role`
        are the coordinator's words.

        Raises:
            CertError: `request-csr`, `key-weak`, `key-kind` and what `issue_client` raises.
        """
        key = csr.public_key()
        if not csr.is_signature_valid:
            raise refuse("request-csr", file=name)
        weakness = keys.weak_key(key)
        if weakness:
            raise refuse("key-weak", file=name, what=weakness)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise refuse("key-kind", file=name, what=keys.describe(key))
        return Leaf(self._issue_client(name, role, key, lifetime, now), self.chain)

    # Revoke ----------------------------------------------------------------------------------

    def revoke(
        self,
        target: int | str,
        *,
        role: str = Role.HOSPITAL,
        reason: str = "",
        now: dt.datetime | None = None,
    ) -> list[Revoked]:
        """Revoke one serial number, or every certificate of a site; doing it twice is no harm.

        Args:
            target: a serial number, or the name of a holder of `role`.
            role: whose certificates, when `target` is a name.
            reason: kept in the CA's record; the public list does not show it.
            now: the moment of the revocation.

        Returns:
            The entries of `target`, those revoked earlier included.

        Raises:
            CertError: `serial-unknown` for a number that this CA did not issue.
        """
        now = now or utc_now()
        done: list[Revoked] = []
        with self._changing():
            for generation in self._state.generations:
                done += _revoke_in(generation, target, role, reason, now)
        if isinstance(target, int) and not done:
            raise refuse("serial-unknown", serial=f"{target:x}")
        if self._folder:
            self.write_public_files(now=now)
        return done

    def crl_pem(
        self, *, lifetime: dt.timedelta = CRL_LIFETIME, now: dt.datetime | None = None
    ) -> bytes:
        """Fresh revocation lists of every CA that a chain can hold, one after the other.

        HAProxy and nginx want a list of each of them, or they refuse every client.

        Raises:
            CertError: `lifetime`, `ca-offline`, `key-locked`, `key-passphrase`.
        """
        now = now or utc_now()
        check_lifetime(lifetime)
        text = b""
        with self._changing():
            for generation in self._state.generations:
                generation.forget(now)
                generation.list_number += 1
                revoked = [
                    (int(entry.serial, 16), _x509.parse_stamp(entry.when))
                    for entry in generation.revoked
                ]
                text += _x509.pem(
                    _x509.revocation_list(
                        self._signer(generation.issuing), revoked,
                        number=generation.list_number, begin=now - _x509.BACKDATE,
                        end=now + lifetime,
                    )
                )  # fmt: skip
                text += generation.root_list.encode()
        return text

    def write_public_files(
        self, *, lifetime: dt.timedelta = CRL_LIFETIME, now: dt.datetime | None = None
    ) -> None:
        """Write `ca.crt`, `trust.pem` and a fresh `crl.pem` to the CA's folder.

        Raises:
            CertError: `ca-offline`, `key-*`, `file-unwritable`.
        """
        if self._folder is None:
            return
        write_atomic(self._folder / "ca.crt", _x509.pem(self.root))
        write_atomic(self._folder / "trust.pem", self.trust_pem)
        crl = self.crl_pem(lifetime=lifetime, now=now)
        write_atomic(self._folder / "crl.pem", crl)

    def sign_bytes(self, data: bytes) -> bytes:
        """An ECDSA signature (SHA-256) of the issuing key over `data`, for bundles.

        The caller begins `data` with words of its own, which no certificate begins with.
        """
        signer = self._signer(self.issuing)
        return keys.sign_ec(signer.key, data)

    # Change the root -------------------------------------------------------------------------

    def begin_rollover(
        self,
        *,
        name: str = "fedward",
        lifetime: dt.timedelta = CA_LIFETIME,
        now: dt.datetime | None = None,
    ) -> None:
        """Make a new root, signed by the old one too; both are trusted until it is finished.

        Raises:
            CertError: `rollover-running`, `ca-offline`, `key-*`, `lifetime`.
        """
        now = now or utc_now()
        check_lifetime(lifetime)
        with self._changing():
            if self.rolling:
                raise refuse(
                    "rollover-running", folder=self._folder or "the CA", when=self.rollover_since
                )
            old = self._current
            curve = _curve_of(old.root)
            new, held = _new_generation(name, curve, lifetime, now)
            root_key = held[key_id(new.root)]
            new.cross = _x509.authority(
                new.root.subject, root_key.public_key(), self._signer(old.root),
                begin=now - _x509.BACKDATE,
                end=min(new.root.not_valid_after_utc, old.root.not_valid_after_utc),
                path_length=_CROSS_PATH,
            )  # fmt: skip
            self._keys.update(held)
            self._state.generations.insert(0, new)
            self._state.rollover_since = stamp(now)
            if old.intermediate:
                self._add_intermediate(name, curve, now)
            if self._folder:
                self._write_keys(self._folder, new, self._passphrase, "")
        self.write_public_files(now=now)

    def finish_rollover(self, *, force: bool = False, now: dt.datetime | None = None) -> None:
        """Stop trusting the old root.

        Raises:
            CertError: `rollover-none`; `rollover-needed` when certificates of the old root still
                run and `force` is not given.
        """
        now = now or utc_now()
        with self._changing():
            if not self.rolling:
                raise refuse("rollover-none", folder=self._folder or "the CA")
            self._state.generations[1].forget(now)
            revoked = {entry.serial for entry in self._state.generations[1].revoked}
            left = self._superseded_filter(revoked, now)
            if left and not force:
                raise refuse(
                    "rollover-needed", folder=self._folder or "the CA", count=len(left),
                    end=max(entry.end for entry in left),
                    names=", ".join(sorted({entry.name for entry in left})),
                )  # fmt: skip
            del self._state.generations[1:]
            self._state.rollover_since = ""
            self._current.cross = None
        self.write_public_files(now=now)

    # Helpers ---------------------------------------------------------------------------------

    @property
    def _current(self) -> Generation:
        return self._state.generations[0]

    def _superseded_filter(self, revoked: set[str], now: dt.datetime) -> list[Issued]:
        """Old certificates that still run and whose holder has none from the new root."""
        renewed = {(entry.name, entry.role) for entry in self._current.issued}
        return [
            entry
            for entry in self._state.generations[1].issued
            if entry.serial not in revoked
            and entry.end > stamp(now)
            and (entry.name, entry.role) not in renewed
        ]

    def _issue_client(
        self,
        name: str,
        role: str,
        key: ec.EllipticCurvePublicKey,
        lifetime: dt.timedelta,
        now: dt.datetime | None,
    ) -> x509.Certificate:
        known = check_role(role)
        uri = x509.UniformResourceIdentifier(identity_uri(known, check_site(name)))
        subject = _x509.subject(name, known.value)
        return self._issue(subject, key, _x509.CLIENT, name, known.value, [uri], lifetime, now)

    def _issue(
        self,
        subject: x509.Name,
        key: object,
        usage: x509.ObjectIdentifier,
        name: str,
        role: str,
        names: Sequence[x509.GeneralName],
        lifetime: dt.timedelta,
        now: dt.datetime | None,
    ) -> x509.Certificate:
        """Sign and remember one leaf, which never outlives the CA that signs it."""
        now = now or utc_now()
        check_lifetime(lifetime)
        issuing = self.issuing
        if not issuing.not_valid_before_utc <= now < issuing.not_valid_after_utc:
            raise refuse(
                "ca-expired", subject=issuing.subject.rfc4514_string(),
                end=stamp(issuing.not_valid_after_utc), now=stamp(now),
            )  # fmt: skip
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise refuse("key-kind", file=name, what=keys.describe(key))
        with self._changing():
            certificate = _x509.leaf(
                subject, key, self._signer(issuing), begin=now - _x509.BACKDATE,
                end=min(now + lifetime, issuing.not_valid_after_utc), usage=usage, names=names,
                crl_url=self.crl_url,
            )  # fmt: skip
            end = stamp(certificate.not_valid_after_utc)
            self._current.issued.append(
                Issued(f"{certificate.serial_number:x}", name, role, end)
            )  # fmt: skip
        return certificate

    def _add_intermediate(self, name: str, curve: str, now: dt.datetime) -> None:
        generation = self._current
        key = keys.new_certificate_key(curve)
        end = min(now + INTERMEDIATE_LIFETIME, generation.root.not_valid_after_utc)
        signer = self._signer(generation.root)
        subject = _x509.subject(f"{name} issuing CA {_tag()}", "CA")
        generation.intermediate = _x509.authority(
            subject, key.public_key(), signer, begin=now - _x509.BACKDATE, end=end,
            path_length=_INTERMEDIATE_PATH,
        )  # fmt: skip
        self._keys[key_id(generation.intermediate)] = key
        root_list = _x509.revocation_list(
            signer, [], number=1, begin=now - _x509.BACKDATE, end=now + ROOT_CRL_LIFETIME
        )
        generation.root_list = _x509.pem(root_list).decode()

    def _signer(self, certificate: x509.Certificate) -> Issuer:
        """The certificate with its key, read from the folder the first time."""
        name = key_id(certificate)
        if name not in self._keys:
            path = (self._folder or Path()) / f"{name}.key"
            if self._folder is None or not path.exists():
                raise refuse("ca-offline", file=path)
            key = keys.load_certificate_key(path, passphrase=self._passphrase)
            if keys.public_digest(key.public_key()) != keys.public_digest(certificate.public_key()):
                raise refuse("key-swapped", key=path, file=path.parent / "state.json")
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise refuse("key-kind", file=path, what=keys.describe(key))
            self._keys[name] = key
        return Issuer(certificate, self._keys[name])

    def _write_keys(
        self, folder: Path, generation: Generation, passphrase: str, root_passphrase: str
    ) -> None:
        for certificate in (generation.root, generation.intermediate):
            key = self._keys.get(key_id(certificate)) if certificate else None
            if certificate is None or key is None:
                continue
            own = root_passphrase if certificate is generation.root else ""
            write_key(
                folder / f"{key_id(certificate)}.key", keys.private_pem(key, own or passphrase)
            )

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the state: on disk under the lock, from what is there now, or in memory."""
        if self._folder is None:
            yield
            return
        with locked(self._folder):
            self._state = State.read(self._folder)
            yield
            self._state.write(self._folder)


def key_id(certificate: x509.Certificate) -> str:
    """The stem of the file of a CA's key: `ca-1a2b3c4d`, from its public key's SHA-256."""
    return f"ca-{keys.public_digest(certificate.public_key())[:8]}"


def _new_generation(
    name: str, curve: str, lifetime: dt.timedelta, now: dt.datetime
) -> tuple[Generation, dict[str, ec.EllipticCurvePrivateKey]]:
    key = keys.new_certificate_key(curve)
    root = _x509.authority(
        _x509.subject(f"{name} CA {_tag()}", "CA"), key.public_key(), key,
        begin=now - _x509.BACKDATE, end=now + lifetime, path_length=_ROOT_PATH,
    )  # fmt: skip
    return Generation(root), {key_id(root): key}


def _revoke_in(
    generation: Generation, target: int | str, role: str, reason: str, now: dt.datetime
) -> list[Revoked]:
    """Revoke in one generation; returns the target's entries, old and new."""
    wanted = f"{target:x}" if isinstance(target, int) else ""
    known = {entry.serial: entry for entry in generation.revoked}
    result = []
    for entry in generation.issued:
        if entry.serial != wanted and (wanted or (entry.name, entry.role) != (target, role)):
            continue
        if entry.serial not in known:
            known[entry.serial] = Revoked(entry.serial, entry.name, stamp(now), reason, entry.end)
            generation.revoked.append(known[entry.serial])
        result.append(known[entry.serial])
    return result


def _curve_of(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    big = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size > 256
    return "P-384" if big else "P-256"


def _tag() -> str:
    """Eight random hexadecimal digits: no two CAs have one name, so none is taken for another."""
    return f"{x509.random_serial_number() & 0xFFFFFFFF:08x}"
