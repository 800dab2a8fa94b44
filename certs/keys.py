"""Private and public keys: a node's identity, a signing key, a certificate's key.

| key | kind | file | why |
|---|---|---|---|
| node key | NIST EC P-384 | OpenSSH | Flower's SuperNode reads nothing else (Ed25519 is refused) |
| signing key | Ed25519 (RFC 8032) | PKCS #8 PEM, public half SPKI PEM | signs update messages |
| certificate key | NIST EC P-256 or P-384 | PKCS #8 PEM | TLS; every client knows these curves |
"""

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

from certs.files import MAX_BYTES, read_limited, write_atomic, write_key
from certs.sentences import refuse

CURVES: dict[str, type[ec.EllipticCurve]] = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1}
NODE_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

CertificateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def new_certificate_key(curve: str = "P-256") -> ec.EllipticCurvePrivateKey:
    """A fresh key for a CA or a leaf.

    Raises:
        CertError: `curve`.
    """
    if curve not in CURVES:
        raise refuse("curve", curve=curve)
    return ec.generate_private_key(CURVES[curve]())


def new_node_key() -> ec.EllipticCurvePrivateKey:
    """A fresh identity for a SuperNode: NIST EC P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def new_signing_key() -> ed25519.Ed25519PrivateKey:
    """A fresh Ed25519 key, for a site's trainer or for the study's coordinator."""
    return ed25519.Ed25519PrivateKey.generate()


def private_pem(key: CertificateKey | ed25519.Ed25519PrivateKey, passphrase: str = "") -> bytes:
    """`key` as PKCS #8 PEM, encrypted when there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def public_pem(key: ed25519.Ed25519PublicKey) -> bytes:
    """`key` as SubjectPublicKeyInfo PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def node_public_line(key: ec.EllipticCurvePublicKey, comment: str = "") -> bytes:
    """`key` as a line of an OpenSSH public file, as `flwr supernode register` takes it."""
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return line + (b" " + comment.encode() if comment else b"") + b"\n"


def write_node_key(path: Path, key: ec.EllipticCurvePrivateKey, *, comment: str = "") -> None:
    """Write `path` (OpenSSH private, 0600) and its public half beside it as `.pub`."""
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    write_key(path, private)
    write_atomic(path.with_suffix(".pub"), node_public_line(key.public_key(), comment))


def write_signing_key(path: Path, key: ed25519.Ed25519PrivateKey) -> None:
    """Write `path` (PKCS #8 PEM, 0600) and its public half beside it as `.pub`."""
    write_key(path, private_pem(key))
    write_atomic(path.with_suffix(".pub"), public_pem(key.public_key()))


def load_certificate_key(
    path: Path, *, passphrase: str = "", group_may_read: bool = False
) -> CertificateKey:
    """The private key of a certificate, from PEM.

    Args:
        path: the key's file.
        passphrase: opens an encrypted key.
        group_may_read: allow mode 0640, as a Kubernetes secret with an `fsGroup` has it.

    Raises:
        CertError: `file-*`, `key-*`.
    """
    data = _read_private(path, group_may_read)
    key = _parse_pem_key(data, path, passphrase)
    if not isinstance(key, CertificateKey):
        raise refuse("key-kind", file=path, what=describe(key))
    weakness = weak_key(key.public_key())
    if weakness:
        raise refuse("key-weak", file=path, what=weakness)
    return key


def load_node_key(path: Path, *, group_may_read: bool = False) -> ec.EllipticCurvePrivateKey:
    """A SuperNode's identity, as Flower will read it.

    Raises:
        CertError: `file-*`, `key-*`, `node-key-kind`, `node-key-format`.
    """
    data = _read_private(path, group_may_read)
    if b"-----BEGIN OPENSSH PRIVATE KEY-----" not in data:
        # Parsing first tells garbage from a good key in the wrong clothes.
        _parse_pem_key(data, path, "")
        raise refuse("node-key-format", file=path)
    if b"-----END OPENSSH PRIVATE KEY-----" not in data:
        raise refuse("key-truncated", file=path)
    try:
        key = serialization.load_ssh_private_key(data, None)
    except TypeError as error:
        raise refuse("key-locked", file=path) from error
    except (ValueError, UnsupportedAlgorithm, NotImplementedError) as error:
        # "Key is password-protected" comes as TypeError or ValueError, depending on the cipher.
        code = "key-locked" if "password" in str(error).lower() else "key-garbage"
        raise refuse(code, file=path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, NODE_CURVES):
        raise refuse("node-key-kind", file=path, what=describe(key))
    return key


def load_signing_key(path: Path, *, group_may_read: bool = False) -> ed25519.Ed25519PrivateKey:
    """An Ed25519 signing key from PKCS #8 PEM.

    Raises:
        CertError: `file-*`, `key-*`, `signing-key-kind`.
    """
    key = _parse_pem_key(_read_private(path, group_may_read), path, "")
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise refuse("signing-key-kind", file=path, what=describe(key))
    return key


def load_node_public(path: Path) -> ec.EllipticCurvePublicKey:
    """A SuperNode's public key from an OpenSSH public file.

    Raises:
        CertError: `file-*`, `node-public-key`.
    """
    return parse_node_public(read_limited(path, limit=MAX_BYTES), path)


def parse_node_public(data: bytes, source: object) -> ec.EllipticCurvePublicKey:
    """A SuperNode's public key from one OpenSSH line; `source` is named when it is refused."""
    try:
        key = serialization.load_ssh_public_key(data.strip())
    except (ValueError, UnsupportedAlgorithm, NotImplementedError) as error:
        raise refuse("node-public-key", file=source) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, NODE_CURVES):
        raise refuse("node-public-key", file=source)
    return key


def load_signing_public(path: Path) -> ed25519.Ed25519PublicKey:
    """An Ed25519 public key from SubjectPublicKeyInfo PEM.

    Raises:
        CertError: `file-*`, `signing-public-key`.
    """
    return parse_signing_public(read_limited(path, limit=MAX_BYTES), path)


def parse_signing_public(data: bytes, source: object) -> ed25519.Ed25519PublicKey:
    """An Ed25519 public key from PEM bytes; `source` is named when it is refused."""
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise refuse("signing-public-key", file=source) from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise refuse("signing-public-key", file=source)
    return key


def public_digest(key: object) -> str:
    """SHA-256 over the SubjectPublicKeyInfo (DER) of a public key, in hexadecimal."""
    return hashlib.sha256(spki(key)).hexdigest()


def spki(key: object) -> bytes:
    """SubjectPublicKeyInfo (RFC 5280, 4.1) of a public key, as DER."""
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
        raise TypeError(f"not a public key that we use: {type(key).__name__}")
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def weak_key(key: object) -> str:
    """What is weak about a public key, in words; empty when it is strong enough.

    The bounds are those of NIST SP 800-57 for use beyond 2030: 2048-bit RSA is the least
    that OpenSSL's default level accepts, and curves below P-256 are refused by every browser.
    """
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048:
        return f"RSA of {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size < 256:
        return f"curve {key.curve.name}"
    return ""


def describe(key: object) -> str:
    """The kind of a key in words, for a sentence."""
    if isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        return "an Ed25519 key"
    if isinstance(key, ed448.Ed448PrivateKey | ed448.Ed448PublicKey):
        return "an Ed448 key"
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        return f"an RSA key of {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return f"an EC key on curve {key.curve.name}"
    if isinstance(key, dsa.DSAPrivateKey | dsa.DSAPublicKey):
        return "a DSA key"
    return "a key of an unknown kind"


def _read_private(path: Path, group_may_read: bool) -> bytes:
    """The bytes of a private key's file, when nobody else can have read or changed them."""
    data = read_limited(path)
    mode = path.stat().st_mode & 0o777
    allowed = 0o740 if group_may_read else 0o700
    if mode & ~allowed:
        raise refuse("key-open", file=path, mode=mode)
    return data


def _parse_pem_key(data: bytes, path: Path, passphrase: str) -> object:
    if b"PRIVATE KEY-----" not in data and b"-----BEGIN CERTIFICATE-----" in data:
        raise refuse("key-is-certificate", file=path)
    if b"-----BEGIN " not in data or b"PRIVATE KEY-----" not in data:
        raise refuse("key-garbage", file=path)
    if b"-----END " not in data[data.index(b"PRIVATE KEY-----") :]:
        raise refuse("key-truncated", file=path)
    locked = b"ENCRYPTED" in data
    if locked and not passphrase:
        raise refuse("key-locked", file=path)
    try:
        return serialization.load_pem_private_key(data, passphrase.encode() if locked else None)
    except TypeError as error:
        raise refuse("key-locked", file=path) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise refuse("key-passphrase" if locked else "key-garbage", file=path) from error


def sign_ec(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """An ECDSA signature with SHA-256 over `data`, DER-encoded."""
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def signed_by(key: object, signature: bytes, data: bytes) -> bool:
    """Whether `signature` over `data` was made by the private half of `key` (EC or Ed25519)."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
            return True
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
            return True
    except InvalidSignature:
        return False
    return False
