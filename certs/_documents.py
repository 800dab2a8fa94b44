"""The JSON texts that travel between hospital and coordinator, read strictly.

A request and a bundle are objects of text fields, known by name; a field too many is refused like
one too few, because nobody can say who put it there.
"""

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from certs.sentences import refuse


@dataclass(frozen=True)
class Form:
    """One kind of document: `kind` is `request` or `bundle`, and begins the codes of refusal."""

    kind: str
    version: int
    fields: Collection[str]  # all text
    signatures: Collection[str]  # the keys of `proof`, each base64

    @property
    def title(self) -> str:
        """What stands under `format`."""
        return f"fedward-enrolment-{self.kind}"

    def statement(self, fields: Mapping[str, str]) -> bytes:
        """The bytes that are signed: a line of our own, then canonical JSON.

        The first line keeps a signature made here from meaning anything elsewhere: no
        certificate, CSR or update message begins with these words.
        """
        text = json.dumps(dict(fields), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return f"fedward enrolment {self.kind} {self.version}\n{text}".encode()

    def dump(self, fields: Mapping[str, str], proof: Mapping[str, bytes]) -> bytes:
        """The document as text, one field a line, so that a person can read it."""
        body: dict[str, Any] = {"format": self.title, "version": self.version, **fields}
        body["proof"] = {name: base64.b64encode(value).decode() for name, value in proof.items()}
        return json.dumps(body, indent=1).encode() + b"\n"

    def load(self, data: bytes, source: object) -> tuple[dict[str, str], dict[str, bytes]]:
        """The fields and the signatures of a document; nothing is believed yet.

        Raises:
            CertError: `request-garbage`, `-version`, `-fields` or the same of a bundle.
        """
        body = self._parse(data, source)
        if body.get("format") != self.title:
            raise refuse(f"{self.kind}-garbage", file=source)
        if body.get("version") != self.version:
            got = str(body.get("version"))
            raise refuse(f"{self.kind}-version", file=source, got=got, expected=self.version)
        fields = {k: v for k, v in body.items() if k not in {"format", "version", "proof"}}
        why = _wrong(fields, self.fields, "field")
        given = body.get("proof")
        proof: dict[str, Any] = given if isinstance(given, dict) else {}
        why = why or _wrong(proof, self.signatures, "proof")
        if why:
            raise refuse(f"{self.kind}-fields", file=source, why=why)
        try:
            signatures = {k: base64.b64decode(v, validate=True) for k, v in proof.items()}
        except (binascii.Error, ValueError) as error:
            why = "a proof is not base64"
            raise refuse(f"{self.kind}-fields", file=source, why=why) from error
        return fields, signatures

    def _parse(self, data: bytes, source: object) -> dict[str, Any]:
        try:
            body = json.loads(data.decode(), object_pairs_hook=_no_twins)
        except (ValueError, RecursionError) as error:
            raise refuse(f"{self.kind}-garbage", file=source) from error
        if not isinstance(body, dict):
            raise refuse(f"{self.kind}-garbage", file=source)
        return body


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice: two readers could believe two different values."""
    body = dict(pairs)
    if len(body) != len(pairs):
        raise ValueError("a key stands twice")
    return body


def _wrong(fields: Mapping[str, Any], expected: Collection[str], noun: str) -> str:
    for name in expected:
        if not isinstance(fields.get(name), str):
            return f"{noun} {name!r} is missing or not text"
    extra = sorted(set(fields) - set(expected))
    return f"{noun} {extra[0]!r} is unknown" if extra else ""
