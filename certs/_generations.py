"""Making a root and what hangs from it; signing and revoking inside one generation."""

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs import _x509, keys
from certs._keystore import KeyStore
from certs._state import Generation, Revoked
from certs._x509 import BACKDATE, stamp

# Old root, new root signed by the old, intermediate: two CAs may stand between a root and a leaf.
_ROOT_PATH, _CROSS_PATH, _INTERMEDIATE_PATH = 2, 1, 0


def new_generation(
    store: KeyStore, name: str, curve: str, lifetime: dt.timedelta, now: dt.datetime
) -> Generation:
    """A fresh root; its key goes to `store`."""
    key = keys.new_certificate_key(curve)
    root = _x509.authority(
        _x509.subject(f"{name} CA {_tag()}", "CA"),
        key.public_key(),
        key,
        begin=now - BACKDATE,
        end=now + lifetime,
        path_length=_ROOT_PATH,
    )
    store.add(root, key)
    return Generation(root)


def add_intermediate(
    generation: Generation, store: KeyStore, name: str, curve: str, now: dt.datetime
) -> None:
    """Put an intermediate below the root, and sign the root's own revocation list."""
    key = keys.new_certificate_key(curve)
    signer = store.signer(generation.root)
    generation.intermediate = _x509.authority(
        _x509.subject(f"{name} issuing CA {_tag()}", "CA"),
        key.public_key(),
        signer,
        begin=now - BACKDATE,
        end=generation.root.not_valid_after_utc,
        path_length=_INTERMEDIATE_PATH,
    )
    store.add(generation.intermediate, key)
    # The root's own list can only ever revoke the intermediate, and its key is to be offline: it
    # lasts as long as the root, or every chain would be refused one day for want of a list.
    own_list = _x509.revocation_list(
        signer, [], number=1, begin=now - BACKDATE, end=generation.root.not_valid_after_utc
    )
    generation.root_list = _x509.pem(own_list).decode()


def successor(
    old: Generation, store: KeyStore, name: str, lifetime: dt.timedelta, now: dt.datetime
) -> Generation:
    """A fresh generation of the same shape, its root signed by the old root too."""
    curve = curve_of(old.root)
    new = new_generation(store, name, curve, lifetime, now)
    if old.root.not_valid_after_utc > now:  # an ended root vouches for nobody
        new.cross = _x509.authority(
            new.root.subject,
            store.signer(new.root).key.public_key(),
            store.signer(old.root),
            begin=now - BACKDATE,
            end=min(new.root.not_valid_after_utc, old.root.not_valid_after_utc),
            path_length=_CROSS_PATH,
        )
    if old.intermediate:
        add_intermediate(new, store, name, curve, now)
    return new


def revoke_in(
    generation: Generation, target: int | str, role: str, reason: str, now: dt.datetime
) -> list[Revoked]:
    """Revoke a serial number or a holder; returns the target's entries, old and new."""
    wanted = f"{target:x}" if isinstance(target, int) else ""
    known = {entry.serial: entry for entry in generation.revoked}
    result = []
    for entry in generation.issued:
        hit = entry.serial == wanted if wanted else (entry.name, entry.role) == (target, role)
        if not hit:
            continue
        if entry.serial not in known:
            known[entry.serial] = Revoked(entry.serial, entry.name, stamp(now), reason, entry.end)
            generation.revoked.append(known[entry.serial])
        result.append(known[entry.serial])
    return result


def lists_pem(
    generation: Generation, store: KeyStore, lifetime: dt.timedelta, now: dt.datetime
) -> bytes:
    """The fresh list of the CA that signs leaves and, with an intermediate, the root's own."""
    generation.forget(now)
    generation.list_number += 1
    revoked = [
        (int(entry.serial, 16), _x509.parse_stamp(entry.when)) for entry in generation.revoked
    ]
    fresh = _x509.revocation_list(
        store.signer(generation.issuing),
        revoked,
        number=generation.list_number,
        begin=now - BACKDATE,
        end=now + lifetime,
    )
    return _x509.pem(fresh) + generation.root_list.encode()


def curve_of(certificate: x509.Certificate) -> str:
    """The name of a CA's curve, as `keys.CURVES` has it."""
    key = certificate.public_key()
    big = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size > 256
    return "P-384" if big else "P-256"


def _tag() -> str:
    """Eight random hexadecimal digits: no two CAs have one name, so none is taken for another."""
    return f"{x509.random_serial_number() & 0xFFFFFFFF:08x}"
