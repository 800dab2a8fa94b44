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
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs import _x509, keys
from certs._generations import add_intermediate, lists_pem, new_generation, revoke_in, successor
from certs._keystore import KeyStore
from certs._state import Generation, Issued, Revoked, State
from certs._x509 import stamp, utc_now
from certs.files import locked, make_folder, write_atomic
from certs.fingerprints import certificate_fingerprint
from certs.leaf import Leaf
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
LEAF_LIFETIME = dt.timedelta(days=30)
CRL_LIFETIME = dt.timedelta(days=7)


class CA:
    """A root, an optional intermediate below it, and the record of what they signed."""

    def __init__(self, state: State, store: KeyStore) -> None:
        """Use `CA.create` or `CA.load`; this only puts the parts together."""
        self._state = state
        self._store = store

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
            lifetime: of the root, and of the intermediate.
            intermediate: sign leaves with a CA below the root, so that the root's key can be kept
                offline.
            crl_url: where clients find the revocation list; put into every leaf when given.
            now: the time, for tests.

        Raises:
            CertError: `curve`, `lifetime`.
        """
        now = now or utc_now()
        store = KeyStore()
        generation = new_generation(store, name, curve, check_lifetime(lifetime), now)
        if intermediate:
            add_intermediate(generation, store, name, curve, now)
        return cls(State([generation], crl_url), store)

    def save(self, folder: Path, *, passphrase: str = "") -> "CA":
        """Write the CA to `folder`, and keep it up to date there from now on.

        To take a key offline, move its file (`ca-<8 digits>.key`) to another medium; to sign with
        it again, bring the file back.

        Args:
            folder: made when missing, 0700.
            passphrase: encrypts the keys.

        Raises:
            CertError: `ca-exists`, `file-unwritable`.
        """
        make_folder(folder)
        with locked(folder):
            if (folder / "state.json").exists():
                raise refuse("ca-exists", folder=folder)
            self._store.save(folder, passphrase)
            self._state.write(folder)
        self.write_public_files()
        return self

    @classmethod
    def load(cls, folder: Path, *, passphrase: str = "") -> "CA":
        """The CA in `folder`. Keys are read only when something is signed.

        Raises:
            CertError: `file-*`, `state-garbage`.
        """
        return cls(State.read(folder), KeyStore(folder, passphrase))

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
        alternative = _x509.general_names(names)
        certificate = self._issue(
            subject, key.public_key(), _x509.SERVER, names[0], "server", alternative, lifetime, now
        )
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
                done += revoke_in(generation, target, role, reason, now)
        if isinstance(target, int) and not done:
            raise refuse("serial-unknown", serial=f"{target:x}")
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
        with self._changing():
            return b"".join(
                lists_pem(generation, self._store, lifetime, now)
                for generation in self._state.generations
            )

    def write_public_files(
        self, *, lifetime: dt.timedelta = CRL_LIFETIME, now: dt.datetime | None = None
    ) -> None:
        """Write `ca.crt`, `trust.pem` and a fresh `crl.pem` to the CA's folder.

        Raises:
            CertError: `ca-offline`, `key-*`, `file-unwritable`.
        """
        folder = self._store.folder
        if folder is None:
            return
        write_atomic(folder / "ca.crt", _x509.pem(self.root))
        write_atomic(folder / "trust.pem", self.trust_pem)
        write_atomic(folder / "crl.pem", self.crl_pem(lifetime=lifetime, now=now))

    def sign_bytes(self, data: bytes) -> bytes:
        """An ECDSA signature (SHA-256) of the issuing key over `data`, for bundles.

        The caller begins `data` with words of its own, which no certificate begins with.
        """
        return keys.sign_ec(self._store.signer(self.issuing).key, data)

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
                raise refuse("rollover-running", folder=self._where, when=self.rollover_since)
            new = successor(self._current, self._store, name, lifetime, now)
            self._state.generations.insert(0, new)
            self._state.rollover_since = stamp(now)
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
                raise refuse("rollover-none", folder=self._where)
            old = self._state.generations[1]
            left = _still_needed(old, self._current, now)
            if left and not force:
                raise refuse(
                    "rollover-needed",
                    folder=self._where,
                    count=len(left),
                    end=max(entry.end for entry in left),
                    names=", ".join(sorted({entry.name for entry in left})),
                )
            del self._state.generations[1:]
            self._state.rollover_since = ""
            self._current.cross = None
        for certificate in {old.root, old.issuing}:
            self._store.destroy(certificate)
        self.write_public_files(now=now)

    # Helpers ---------------------------------------------------------------------------------

    @property
    def _current(self) -> Generation:
        return self._state.generations[0]

    @property
    def _where(self) -> Path | str:
        return self._store.folder or "the CA"

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
                "ca-expired",
                subject=issuing.subject.rfc4514_string(),
                end=stamp(issuing.not_valid_after_utc),
                now=stamp(now),
            )
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise refuse("key-kind", file=name, what=keys.describe(key))
        with self._changing():
            certificate = _x509.leaf(
                subject,
                key,
                self._store.signer(issuing),
                begin=now - _x509.BACKDATE,
                end=min(now + lifetime, issuing.not_valid_after_utc),
                usage=usage,
                names=names,
                crl_url=self.crl_url,
            )
            end = stamp(certificate.not_valid_after_utc)
            serial = f"{certificate.serial_number:x}"
            self._current.issued.append(Issued(serial, name, role, end))
        return certificate

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the state: on disk under the lock, from what is there now, or in memory."""
        if self._store.folder is None:
            yield
            return
        with locked(self._store.folder):
            self._state = State.read(self._store.folder)
            yield
            self._state.write(self._store.folder)


def _still_needed(old: Generation, new: Generation, now: dt.datetime) -> list[Issued]:
    """Old certificates that still run and whose holder has none from the new root."""
    revoked = {entry.serial for entry in old.revoked}
    renewed = {(entry.name, entry.role) for entry in new.issued}
    return [
        entry
        for entry in old.issued
        if entry.serial not in revoked
        and entry.end > stamp(now)
        and (entry.name, entry.role) not in renewed
    ]
