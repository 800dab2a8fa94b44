"""Every sentence with which `certs/` refuses something, in one place.

The documentation lists these (`python -m certs.reference > docs/security-refusals.md`; a test
compares the two), so what an operator reads on the screen is what the page explains.
"""

from dataclasses import dataclass

from certs import errors
from certs.errors import CertError

# A value from a hostile file is shown, but not at full length and not with control characters.
_SHOWN = 80


@dataclass(frozen=True)
class Refusal:
    """One way to be refused: a fixed code, a sentence with {holes}, and what to do next."""

    code: str
    kind: type[CertError]
    text: str
    hint: str = ""


_ROTATE = "run `fedward certs rotate` on the coordinator's machine"
_RENEW = "run `fedward node enrol` here, have it approved, then `fedward node install`"
_AGAIN = "send the file again; if it fails again, make it again where it came from"
_CLOCK = "compare `date -u` on both machines and run NTP; Flower, too, refuses skewed clocks"

_FILES = (
    ("file-missing", "{file}: there is no such file", "check the path in the settings"),
    (
        "file-unreadable",
        "{file}: cannot be read ({why})",
        "give the account that runs fedward read access to it",
    ),
    ("file-unwritable", "{file}: cannot be written ({why})", "check the folder, its owner and df"),
    ("file-not-regular", "{file}: is a folder or a device, not a file", ""),
    ("file-empty", "{file}: is empty", _AGAIN),
    ("file-oversized", "{file}: is larger than {limit} KiB, the most such a file may have", ""),
)

_NAMES = (
    (
        "name-site",
        "site {name!r}: use 1 to 63 lower-case letters, digits and inner dashes",
        "for example 'hospital-a'",
    ),
    ("name-role", "role {role!r}: use hospital, coordinator or operator", ""),
    (
        "name-server",
        "server name {name!r}: use a DNS name or an IP address, without a port or a wildcard",
        "for example 'fl.example.org' or '10.0.0.7'",
    ),
    ("name-server-none", "a server certificate needs a list of at least one name", ""),
    ("name-sites-twice", "site {name!r} is listed twice", ""),
    ("lifetime", "lifetime {value}: use between one second and ten years", ""),
    ("curve", "curve {curve!r}: use P-256 or P-384", ""),
)

_KEYS = (
    (
        "key-open",
        "{file}: others may read or change this private key (mode {mode:04o}); it must be 0600",
        "run `chmod 600` on it; if others use this machine, replace the key",
    ),
    ("key-truncated", "{file}: the private key is cut short (no END line)", _AGAIN),
    ("key-garbage", "{file}: holds no private key that can be read", _AGAIN),
    (
        "key-is-certificate",
        "{file}: holds a certificate where a private key belongs",
        "the two paths are probably swapped",
    ),
    (
        "key-locked",
        "{file}: the private key is encrypted and no passphrase was given",
        "give the passphrase; a server's own key must be stored without one",
    ),
    ("key-passphrase", "{file}: the passphrase does not open this private key", ""),
    (
        "key-swapped",
        "{key}: is not the key of the certificate in {file} (they hold different public keys)",
        "put the key and the certificate that were made together side by side, or " + _ROTATE,
    ),
    (
        "key-weak",
        "{file}: {what} is too weak; use NIST EC P-256 or P-384, or RSA of at least 2048 bits",
        _ROTATE,
    ),
    (
        "key-kind",
        "{file}: holds {what}, which does not serve for TLS here; use NIST EC or RSA",
        _ROTATE,
    ),
    (
        "node-key-kind",
        "{file}: holds {what}; Flower takes only NIST EC keys as a node's identity",
        "make it with `fedward node enrol`, or `ssh-keygen -t ecdsa -b 384 -N ''`",
    ),
    (
        "node-key-format",
        "{file}: is not in OpenSSH format, the only one that Flower reads for a node's identity",
        "convert it with `ssh-keygen -p -N '' -f`, or make it with `fedward node enrol`",
    ),
    (
        "node-public-key",
        "{file}: does not hold an OpenSSH public key of kind ecdsa-sha2-nistp256, -384 or -521",
        "copy the .pub file that `fedward node enrol` wrote",
    ),
    (
        "node-key-swapped",
        "{file}: is not the public half of the node key {key}",
        "write it again with `ssh-keygen -y -f` on the private key",
    ),
    (
        "signing-key-kind",
        "{file}: holds {what}; updates are signed with an Ed25519 key",
        "make it with `fedward node enrol`",
    ),
    ("signing-public-key", "{file}: does not hold an Ed25519 public key in PEM", _AGAIN),
    (
        "signing-key-swapped",
        "{file}: is not the public half of the signing key {key}",
        "put the two files that were made together side by side",
    ),
)

_CERTIFICATES = (
    ("cert-der", "{file}: is binary DER; certificates here are PEM text", "use `openssl x509`"),
    ("cert-truncated", "{file}: the certificate is cut short (no END line)", _AGAIN),
    ("cert-garbage", "{file}: holds no certificate that can be read", _AGAIN),
    (
        "cert-is-key",
        "{file}: holds a private key where certificates belong",
        "the two paths are probably swapped; nobody else must see that file",
    ),
    ("cert-is-request", "{file}: holds a signing request, not yet a certificate", _RENEW),
    (
        "cert-expired",
        "{file}: the certificate {subject} ended at {end} and it is now {now}",
        "a server's: " + _ROTATE + "; a hospital's: " + _RENEW,
    ),
    (
        "cert-not-yet",
        "{file}: the certificate {subject} begins at {begin} and it is now {now}; "
        "this machine's clock is probably behind",
        _CLOCK,
    ),
    (
        "cert-sha1",
        "{file}: the certificate {subject} is signed with {algorithm}; use SHA-256 or better",
        _ROTATE,
    ),
    ("cert-version", "{file}: the certificate {subject} is not X.509 version 3", _ROTATE),
    (
        "cert-extensions",
        "{file}: the certificate {subject} has extensions that cannot be read",
        _ROTATE,
    ),
    (
        "cert-critical",
        "{file}: the certificate {subject} has the critical extension {oid}, unknown here",
        _ROTATE,
    ),
    (
        "cert-self-signed",
        "{file}: the certificate {subject} is signed by itself, not by the study's CA",
        _ROTATE,
    ),
    (
        "cert-is-ca",
        "{file}: the certificate {subject} is a CA's; a server or hospital needs a leaf",
        _ROTATE,
    ),
    (
        "cert-usage",
        "{file}: the certificate {subject} is for {got}; it must be for {expected}",
        "a hospital's certificate cannot serve as a server's, nor the reverse",
    ),
    (
        "cert-key-usage",
        "{file}: the certificate {subject} may not be used for digital signatures",
        _ROTATE,
    ),
    (
        "cert-names",
        "{file}: the certificate is for {got}, not for {expected}",
        "run `fedward certs rotate --name` with every name under which the server is reached",
    ),
    (
        "cert-no-names",
        "{file}: the certificate {subject} has no alternative names, which TLS clients require",
        _ROTATE,
    ),
    (
        "cert-identity",
        "{file}: the certificate names {got}; it must name {expected}",
        "install the bundle that was made for this site",
    ),
    (
        "cert-order",
        "{file}: the certificates are in the wrong order; the leaf comes first, "
        "then the one that signed it",
        "put them in order, or " + _ROTATE,
    ),
    (
        "cert-stray",
        "{file}: holds the certificate {subject}, which did not sign the one before it",
        "leave only the leaf and the certificates that lead to the root",
    ),
    (
        "cert-wrong-ca",
        "{file}: the certificate {subject} was issued by {issuer}, which is not in {ca}",
        "use the ca.crt of the same study, or " + _ROTATE,
    ),
    (
        "cert-forged",
        "{file}: the certificate {subject} names {issuer} as issuer but was not signed by it",
        "a CA of the same name but another key made it; use the ca.crt of the same study",
    ),
    (
        "cert-path",
        "{file}: the certificate {subject} may not sign what follows from it",
        "a CA certificate needs CA:TRUE, keyCertSign and a path length that allows the chain",
    ),
    (
        "ca-not-root",
        "{file}: the certificate {subject} is not a root CA (CA:TRUE, signed by itself)",
        "put the study's root certificate there, not a server's or a hospital's",
    ),
    (
        "crl-garbage",
        "{file}: holds no revocation list that can be read",
        "run `fedward certs rotate --crl`",
    ),
    (
        "crl-forged",
        "{file}: the revocation list of {issuer} was not signed by a CA of this study",
        "run `fedward certs rotate --crl`",
    ),
    (
        "crl-expired",
        "{file}: the revocation list ended at {end} and it is now {now}",
        "run `fedward certs rotate --crl`; where an edge reads the list, have a job do it daily",
    ),
    (
        "crl-not-yet",
        "{file}: the revocation list begins at {begin} and it is now {now}; "
        "this machine's clock is probably behind",
        _CLOCK,
    ),
    (
        "crl-none",
        "{file}: holds no revocation list of {issuer}, which issued the certificate",
        "run `fedward certs rotate --crl`",
    ),
    (
        "cert-revoked",
        "{file}: the certificate {subject} was revoked at {when}",
        "ask the coordinator why; a revoked site enrols again with new keys",
    ),
)

_REQUESTS = (
    (
        "request-garbage",
        "{file}: is not an enrolment request (one JSON text made by `fedward node enrol`)",
        _AGAIN,
    ),
    (
        "request-version",
        "{file}: is an enrolment request of form {got}; this version reads form {expected}",
        "upgrade the older of the two installations",
    ),
    ("request-fields", "{file}: the request's fields are wrong: {why}", _AGAIN),
    ("request-csr", "{file}: the request's CSR cannot be read or is not signed by its key", _AGAIN),
    (
        "request-subject",
        "{file}: the request is for site {site!r} but its CSR names {got!r}",
        "somebody changed the name; make a new request with `fedward node enrol`",
    ),
    (
        "request-asks",
        "{file}: the request's CSR asks for {what}; a hospital's CSR asks only for its name",
        "make the request with `fedward node enrol`",
    ),
    ("request-key", "{file}: the request's {which} is not acceptable: {why}", _AGAIN),
    (
        "request-proof",
        "{file}: the request is not signed by its own {which}; it is forged or altered",
        "have the hospital make it again, and compare the fingerprint by telephone",
    ),
    ("request-same-keys", "{file}: the request uses one key for two purposes", _AGAIN),
    (
        "request-future",
        "{file}: the request was made at {when} and it is now {now}; one of two clocks is wrong",
        _CLOCK,
    ),
    (
        "fingerprint-form",
        "fingerprint {got!r}: give all 8 groups of 4 hexadecimal digits",
        "the hospital reads them from its screen: `fedward node enrol` prints them",
    ),
    (
        "fingerprint",
        "{file}: the request's fingerprint is {expected}, not {got}",
        "this is not the request that the hospital made, or it was read out wrongly",
    ),
    (
        "fingerprint-none",
        "site {site!r} enrols for the first time: its fingerprint is needed",
        "ask the hospital for it by telephone and give it with --fingerprint",
    ),
    (
        "site-enrolled",
        "site {site!r} is enrolled already, since {when}",
        "to give it a new certificate for the same keys, add --renew",
    ),
    (
        "site-unknown",
        "site {site!r} is not enrolled",
        "sites that are: `fedward certs list`; to enrol one, leave out --renew",
    ),
    (
        "site-other-keys",
        "site {site!r} asks to renew with another {which} than it enrolled with",
        "new keys need a new enrolment: `fedward certs revoke`, then approve with --readmit",
    ),
    (
        "site-revoked",
        "site {site!r} was revoked at {when}",
        "if it may come back: new keys at the hospital, then approve with --readmit",
    ),
    (
        "site-revoked-keys",
        "site {site!r} was revoked at {when} and comes back with the same {which}",
        "the hospital makes new keys: `fedward node enrol --new-keys`",
    ),
    (
        "key-of-other-site",
        "{file}: the request's {which} belongs to site {owner!r}",
        "each hospital makes its own keys; nobody copies them",
    ),
)

_BUNDLES = (
    (
        "bundle-garbage",
        "{file}: is not an enrolment bundle (one JSON text made by `fedward certs approve`)",
        _AGAIN,
    ),
    (
        "bundle-version",
        "{file}: is an enrolment bundle of form {got}; this version reads form {expected}",
        "upgrade the older of the two installations",
    ),
    ("bundle-fields", "{file}: the bundle's fields are wrong: {why}", _AGAIN),
    ("bundle-proof", "{file}: the bundle is not signed by its CA; it is forged or altered", _AGAIN),
    ("bundle-secret", "{file}: the bundle holds a private key; destroy it", "tell the coordinator"),
    (
        "bundle-site",
        "{file}: the bundle is for site {got!r}; this folder belongs to site {site!r}",
        "ask the coordinator for this site's bundle",
    ),
    (
        "bundle-key",
        "{file}: the bundle was made for another {which} than the one in {folder}",
        "approve the request that lies in that folder, and install the bundle made from it",
    ),
    (
        "bundle-other-ca",
        "{file}: the bundle comes from CA {got}; this site is enrolled with {expected}",
        "compare the CA's fingerprint with the coordinator by telephone before anything else",
    ),
    (
        "bundle-study-key",
        "{file}: the bundle has another study signing key than the one installed here",
        "compare it with the coordinator by telephone, then install with --new-study-key",
    ),
    (
        "bundle-ca-fingerprint",
        "{file}: the bundle's CA has the fingerprint {expected}, not {got}",
        "do not install it; ask the coordinator over another channel",
    ),
    (
        "bundle-older",
        "{file}: the bundle was made at {got}, before the one installed here ({installed})",
        "install the newest bundle",
    ),
    (
        "enrol-none",
        "{folder}: there is no enrolment request here to which a bundle could belong",
        "run `fedward node enrol` first",
    ),
    (
        "enrol-other-site",
        "{folder}: holds the keys of site {got!r}, not of {site!r}",
        "use one folder for each site",
    ),
    (
        "enrol-half",
        "{folder}: holds some of a site's keys but not {missing}",
        "restore it from a backup; or move the folder away and enrol with new keys",
    ),
)

_STATE = (
    (
        "ca-exists",
        "{folder}: there is a CA already, and it was left as it is",
        "use it, or choose another folder",
    ),
    (
        "ca-offline",
        "{file}: the CA's key is not on this machine, so it cannot sign",
        "bring the medium that holds it, or use the intermediate CA",
    ),
    (
        "ca-expired",
        "the CA {subject} ended at {end} and cannot sign at {now}",
        "make a new one: `fedward certs rotate --ca`",
    ),
    ("state-garbage", "{file}: these records cannot be read: {why}", "restore it from a backup"),
    ("serial-unknown", "serial {serial}: this CA has issued no such certificate", ""),
    (
        "rollover-running",
        "{folder}: a change of CA is running already, since {when}",
        "finish it with `fedward certs rotate --ca --finish`",
    ),
    ("rollover-none", "{folder}: no change of CA is running", ""),
    (
        "rollover-needed",
        "{folder}: {count} certificates of the old CA still run, the last until {end}",
        "renew these first: {names}",
    ),
    (
        "audit-broken",
        "{file}: line {line} of the audit log does not follow from the one before",
        "somebody edited it, or a disk failed; compare it with a copy",
    ),
)

GROUPS: tuple[tuple[type[CertError], tuple[tuple[str, str, str], ...]], ...] = (
    (errors.FileRefused, _FILES),
    (errors.NameRefused, _NAMES),
    (errors.KeyRefused, _KEYS),
    (errors.CertificateRefused, _CERTIFICATES),
    (errors.RequestRefused, _REQUESTS),
    (errors.BundleRefused, _BUNDLES),
    (errors.StateRefused, _STATE),
)

REFUSALS = {
    code: Refusal(code, kind, text, hint) for kind, group in GROUPS for code, text, hint in group
}


def refuse(code: str, **values: object) -> CertError:
    """The error named `code`, its holes filled: `raise refuse("file-missing", file=path)`.

    Raises:
        KeyError: no such code, or a hole without a value (a mistake of ours; a test finds it).
    """
    refusal = REFUSALS[code]
    shown = {name: _show(value) for name, value in values.items()}
    text = _printable(refusal.text.format(**shown))
    return refusal.kind(text, hint=_printable(refusal.hint.format(**shown)), code=code)


def _show(value: object) -> object:
    """`value`, fit to be printed: short, and without control characters outside a repr."""
    if isinstance(value, int):
        return value
    text = value if isinstance(value, str) else str(value)
    if len(text) > _SHOWN and not _is_path(value):
        text = text[: _SHOWN - 3] + "..."
    return text


def _printable(text: str) -> str:
    """`text` with its control and direction characters escaped: it may come from an attacker."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_path(value: object) -> bool:
    return hasattr(value, "__fspath__")
