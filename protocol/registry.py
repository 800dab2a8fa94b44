"""The one list of enrolled hospitals: who they are and which keys are theirs.

`certs.registry` writes it (`sites.json`) when a hospital is approved or revoked; the aggregator,
the control plane and the edge read it, and follow it as it changes. It holds public keys only.
"""

import base64
import binascii
import hashlib
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import SettingsError
from .study import Name


class EnrolledSite(BaseModel):
    """One hospital; fields that only enrolment needs are carried and not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    node_public_key: str = Field(pattern=r"^ecdsa-sha2-\S+ \S+")  # OpenSSH, for Flower
    signing_public_key: str  # Ed25519, PEM; signs every reply
    revoked_at: datetime | None = None  # from then on, nothing of the site is accepted
    enrolled_at: datetime | None = None
    renewed_at: datetime | None = None
    not_after: datetime | None = None  # end of its newest certificate

    @field_validator("enrolled_at", "renewed_at", "not_after", mode="before")
    @classmethod
    def _blank_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @property
    def verify_key(self) -> Ed25519PublicKey:
        """The key that this site's replies are checked with."""
        try:
            key = load_pem_public_key(self.signing_public_key.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SettingsError("signing_public_key is not a public key in PEM format") from error
        if not isinstance(key, Ed25519PublicKey):
            raise SettingsError(f"signing_public_key is a {type(key).__name__}, not Ed25519")
        return key

    @property
    def node_key_blob(self) -> bytes:
        """The key's SSH wire encoding: equal for equal keys, whatever the comment beside it."""
        try:
            return base64.b64decode(self.node_public_key.split()[1], validate=True)
        except (binascii.Error, IndexError) as error:
            raise SettingsError("node_public_key is not an OpenSSH public key") from error

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the node key in OpenSSH's notation."""
        digest = hashlib.sha256(self.node_key_blob).digest()
        return "SHA256:" + base64.b64encode(digest).rstrip(b"=").decode()


class Registry(BaseModel):
    """All enrolled hospitals by name."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["fedward-site-registry"] = "fedward-site-registry"
    version: Literal[1] = 1
    sites: dict[Name, EnrolledSite] = {}

    def active(self) -> dict[str, EnrolledSite]:
        """The sites that may take part."""
        return {name: site for name, site in self.sites.items() if site.revoked_at is None}

    def revoked(self) -> dict[str, EnrolledSite]:
        """The sites that may not any more."""
        return {name: site for name, site in self.sites.items() if site.revoked_at is not None}


def load_registry(path: Path) -> Registry:
    """Read the registry.

    Raises:
        SettingsError: missing, unreadable or not a registry.
    """
    try:
        return Registry.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot read the registry of enrolled hospitals: {error.strerror or error}"
        ) from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{path}: not a registry: {where}: {first['msg']}") from error
