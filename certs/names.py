"""Who may stand in a certificate: sites, roles, server names; and for how long."""

import datetime as dt
import ipaddress
import re
from collections.abc import Sequence
from enum import StrEnum

from certs.sentences import refuse

_SITE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)

# An identity lives in a URI (RFC 5280, 4.2.1.6), because a DNS name in a hospital's leaf could
# let it pass as a server, and a common name alone is not compared by anything modern.
IDENTITY_SCHEME = "fedward"


class Role(StrEnum):
    """Who holds a client certificate, and so what the edge lets it do."""

    HOSPITAL = "hospital"  # the Fleet routes of its own site
    COORDINATOR = "coordinator"  # submits, stops, enrols, revokes
    OPERATOR = "operator"  # reads


def check_site(name: object) -> str:
    """`name` when it is a site's name: 1 to 63 lower-case letters, digits and inner dashes.

    The same letters are safe as a folder, a DNS label, a metric's label and part of a URI.

    Raises:
        CertError: `name-site`.
    """
    if not isinstance(name, str) or not _SITE.fullmatch(name):
        raise refuse("name-site", name=name)
    return name


def check_role(role: str) -> Role:
    """`role` as a `Role`.

    Raises:
        CertError: `name-role`.
    """
    try:
        return Role(role)
    except ValueError:
        raise refuse("name-role", role=role) from None


def check_server_names(names: Sequence[str]) -> tuple[str, ...]:
    """`names` as a server's alternative names: DNS names or IP addresses, no wildcard, no port.

    Raises:
        CertError: `name-server` for a bad one, `name-server-none` for an empty list.
    """
    if isinstance(names, str) or not names:
        raise refuse("name-server-none")
    for name in names:
        if not _is_address(name) and not _is_dns_name(name):
            raise refuse("name-server", name=name)
    return tuple(dict.fromkeys(names))


def check_lifetime(lifetime: dt.timedelta) -> dt.timedelta:
    """`lifetime` when it is at least one second and at most ten years.

    Raises:
        CertError: `lifetime`.
    """
    if not dt.timedelta(seconds=1) <= lifetime <= dt.timedelta(days=3660):
        raise refuse("lifetime", value=lifetime)
    return lifetime


def identity_uri(role: Role, name: str) -> str:
    """The URI that names a client: `fedward://hospital/<site>` and its like."""
    return f"{IDENTITY_SCHEME}://{role.value}/{check_site(name)}"


def parse_identity(uri: str) -> tuple[Role, str] | None:
    """The role and name in a URI made by `identity_uri`; None for any other URI."""
    scheme, _, rest = uri.partition("://")
    role, _, name = rest.partition("/")
    if scheme != IDENTITY_SCHEME or role not in set(Role) or not _SITE.fullmatch(name):
        return None
    return Role(role), name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_dns_name(name: str) -> bool:
    labels = name.split(".")
    # A name whose last label is all digits is a mistyped IP address, never a host.
    return (
        len(name) <= 253
        and all(_LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdigit()
    )
