"""What a CA hands out: a certificate with its chain, and how it lies on disk."""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from certs import _x509, keys
from certs.files import write_atomic, write_key


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
