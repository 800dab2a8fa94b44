"""A CA's private keys: in memory, or read from its folder the first time something is signed."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs import keys
from certs._x509 import Issuer
from certs.files import write_key
from certs.sentences import refuse


class KeyStore:
    """Keys by certificate. A file is named after its key, so it can be taken offline and back."""

    def __init__(self, folder: Path | None = None, passphrase: str = "") -> None:
        """Keys are read from, and written to, `folder` once there is one."""
        self.folder = folder
        self.passphrase = passphrase
        self._held: dict[str, ec.EllipticCurvePrivateKey] = {}

    def add(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        """Hold `key`; write it too when there is a folder.

        Raises:
            CertError: `file-unwritable`.
        """
        self._held[key_id(certificate)] = key
        if self.folder:
            self._write(self.folder, key_id(certificate))

    def save(self, folder: Path, passphrase: str) -> None:
        """Write every held key to `folder`, and use that folder from now on.

        Raises:
            CertError: `file-unwritable`.
        """
        self.folder, self.passphrase = folder, passphrase
        for name in self._held:
            self._write(folder, name)

    def signer(self, certificate: x509.Certificate) -> Issuer:
        """`certificate` with its key.

        Raises:
            CertError: `ca-offline` when the key is not here; `key-*` when it cannot be used.
        """
        name = key_id(certificate)
        if name not in self._held:
            self._held[name] = self._read(name, certificate)
        return Issuer(certificate, self._held[name])

    def destroy(self, certificate: x509.Certificate) -> None:
        """Forget a key that nobody trusts any more, and remove its file."""
        self._held.pop(key_id(certificate), None)
        if self.folder:
            (self.folder / f"{key_id(certificate)}.key").unlink(missing_ok=True)

    def _read(self, name: str, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey:
        if self.folder is None:
            raise refuse("ca-offline", file=f"{name}.key")
        path = self.folder / f"{name}.key"
        if not path.exists():
            raise refuse("ca-offline", file=path)
        key = keys.load_certificate_key(path, passphrase=self.passphrase)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise refuse("key-kind", file=path, what=keys.describe(key))
        if keys.public_digest(key.public_key()) != keys.public_digest(certificate.public_key()):
            raise refuse("key-swapped", key=path, file=self.folder / "state.json")
        return key

    def _write(self, folder: Path, name: str) -> None:
        write_key(folder / f"{name}.key", keys.private_pem(self._held[name], self.passphrase))


def key_id(certificate: x509.Certificate) -> str:
    """The stem of the file of a CA's key: `ca-1a2b3c4d`, from its public key's SHA-256."""
    return f"ca-{keys.public_digest(certificate.public_key())[:8]}"
