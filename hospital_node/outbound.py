"""The one door: everything that leaves a hospital passes `Outbound.release`, and nothing else does.

What may leave:
  - a `Reply` or `Progress` header: frozen models of numbers, codes and names that the aggregator
    itself sent; rebuilt from their declared fields here, so a subclass or an added field is lost
    or refused;
  - beside a reply, the encoding of the adapter tensors that the study declares, checked for name,
    shape, dtype, finiteness and L2 norm against the site's limit and the study's.

The few free strings are held to patterns that prose does not fit: tensor names to PEFT's own
naming, the software line to names and versions. Exceptions become reason codes (`reason_of`);
their texts can quote a record and stay in the site's log. Each release is in the ledger before it
is returned. Progress reports and answers to requests that nobody signed are too many for a line
each: they are counted, and the next line says how many and how large they were.
"""

import hashlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from pydantic import ValidationError

from protocol.codec import encode_payload
from protocol.envelope import Envelope, seal
from protocol.manifest import AdapterManifest
from protocol.messages import Progress, Reply
from protocol.states import Reason

from .ledger import Ledger

log = logging.getLogger("fedward.outbound")

Message = TypeVar("Message", Reply, Progress)

TENSOR_NAME: Final = re.compile(
    r"base_model\.[A-Za-z0-9_.]{1,480}\.(lora_[A-Za-z_]+(\.weight)?|ia3_l)"
    r"|prompt_embeddings"
    r"|prompt_encoder\.(embedding\.weight|(mlp_head\.[024]|transform\.[02])\.(weight|bias))"
    r"|~control"
)
"""PEFT's key of a saved tensor, such as `base_model.model.h.0.attn.c_attn.lora_A.weight`, or its
name of an encoder's; and SCAFFOLD's control variate."""

_PART = r"[a-z]{2,16} [0-9]+\.[0-9][0-9a-z.+]{0,24}"
SOFTWARE: Final = re.compile(rf"({_PART}(; {_PART}){{0,7}})?")
"""Names and versions: `python 3.11.2; torch 2.13.0+cpu`."""


class OutboundRefused(Exception):
    """Something was about to leave that must not; `reason` is what the aggregator is told."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Update:
    """Adapter tensors that a reply may carry.

    `tensors` holds float32 arrays by PEFT's saved name; `manifest` is the declared layout.
    `max_norm` bounds the L2 norm of a delta over all tensors; an initial adapter (`kind` adapter)
    is drawn from the study's seed and has no bound. `after` is told, once the reply is in the
    ledger, what the aggregator will decode (float32, (manifest.numel,)); it stays at the site.
    """

    kind: Literal["adapter", "delta"]
    tensors: Mapping[str, NDArray[np.float32]]
    manifest: AdapterManifest
    codec: str
    max_norm: float = math.inf
    after: Callable[[NDArray[np.float32]], None] | None = None


class Outbound:
    """The door of one site, with its key and its ledger."""

    def __init__(self, site: str, key: Ed25519PrivateKey, ledger: Ledger) -> None:
        self.site = site
        self._key = key
        self._ledger = ledger
        self._lock = threading.Lock()
        self._counted = {"progress": 0, "refusals": 0, "bytes": 0}

    def release(
        self,
        header: Reply | Progress,
        update: Update | None = None,
        *,
        request_digest: str = "",
    ) -> Envelope:
        """Check, encode, sign and record; the returned envelope may leave.

        Args:
            header: the numbers; need not have been checked (`model_construct`). A reply's
                `payload` must be None: it is described here, from the bytes that are made here,
                and the time that takes is added to its `timing`.
            update: the tensors beside a reply.
            request_digest: SHA-256 (hex) of the signed request that is answered; empty for a
                request whose signature was not good, and for progress.

        Raises:
            OutboundRefused: the guard found something that must not leave; nothing left.
            LedgerError: it could not be recorded; nothing left.
        """
        try:
            _check_type(header)
            if isinstance(header, Progress):
                if update is not None:
                    raise OutboundRefused(Reason.OUTBOUND_REFUSED, "progress carries no tensors")
                progress = _rebuilt(Progress, header.model_dump(warnings=False), self.site)
                envelope = seal(progress, b"", self._key, context="progress")
                self._count("progress", envelope.size)
                return envelope
            if header.payload is not None:
                raise OutboundRefused(Reason.OUTBOUND_REFUSED, "a payload not made at the door")
            fields, payload, norm = header.model_dump(warnings=False), b"", 0.0
            sent: NDArray[np.float32] | None = None
            if update is not None:
                payload, norm, sent = _encode(fields, update)
            reply = _rebuilt(Reply, fields, self.site)
            if reply.description is not None:
                _check_names(reply.description.manifest)
            envelope = seal(reply, payload, self._key, context="reply")
            if not request_digest and reply.reason is not None:
                self._count("refusals", envelope.size)
            else:
                self._record(reply, envelope, norm, request_digest)
            if update is not None and update.after is not None and sent is not None:
                update.after(sent)
            return envelope
        except OutboundRefused as error:
            log.error("stopped at the door (%s): %s", error.reason, error)
            raise

    def close(self) -> None:
        """Write what was counted since the last line."""
        with self._lock:
            if self._counted["bytes"]:
                self._ledger.append(
                    {"kind": "counted", "at": time.time(), "counted": self._counted}
                )
            self._counted = {"progress": 0, "refusals": 0, "bytes": 0}

    def _count(self, what: str, size: int) -> None:
        with self._lock:
            self._counted[what] += 1
            self._counted["bytes"] += size

    def _record(self, header: Reply, envelope: Envelope, norm: float, request_digest: str) -> None:
        numbers = header.model_dump(
            mode="json",
            exclude_none=True,
            include={"evaluation", "training", "timing", "description", "health"},
        )
        if header.description is not None:
            numbers["description"].pop("manifest")
            numbers["description"]["manifest_digest"] = header.description.manifest.digest
        with self._lock:
            self._ledger.append(
                {
                    "kind": "reply",
                    "at": time.time(),
                    "study": header.study_id,
                    "round": header.round,
                    "task": header.task.value,
                    "request_id": header.request_id,
                    "request_digest": request_digest,
                    "reason": header.reason.value if header.reason else None,
                    "header_bytes": len(envelope.header) + len(envelope.signature),
                    "header_digest": hashlib.sha256(envelope.header).hexdigest(),
                    "payload": header.payload.model_dump(mode="json") if header.payload else None,
                    "norm": norm,
                    "numbers": numbers,
                    "counted": self._counted,
                }
            )
            self._counted = {"progress": 0, "refusals": 0, "bytes": 0}


def reason_of(error: BaseException) -> Reason:
    """The code for an exception; its text is not looked at except to tell a lack of memory.

    An exception that has a `reason` of its own (`OutboundRefused`, the trainer's `Refusal`) keeps
    it.
    """
    reason = getattr(error, "reason", None)
    if isinstance(reason, Reason):
        return reason
    # torch's own class is told by name, so that this module needs no torch; its CPU allocator
    # raises a plain RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Reason.OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and re.search(r"allocate memory|out of memory", str(error)):
        return Reason.OUT_OF_MEMORY
    return Reason.TRAINER_ERROR


def _check_type(header: Reply | Progress) -> None:
    if type(header) not in (Reply, Progress):
        raise OutboundRefused(Reason.OUTBOUND_REFUSED, "a header of an undeclared type")


def _rebuilt(model: type[Message], fields: dict[str, Any], site: str) -> Message:
    """The header made anew from its fields, each judged; free strings are held to patterns."""
    try:
        fresh = model.model_validate(fields)
    except ValidationError as error:
        raise OutboundRefused(
            Reason.OUTBOUND_REFUSED, f"a header with {error.error_count()} undeclared values"
        ) from None
    if fresh.site != site:
        raise OutboundRefused(Reason.OUTBOUND_REFUSED, "a header in another site's name")
    if not SOFTWARE.fullmatch(fresh.health.software):
        raise OutboundRefused(Reason.OUTBOUND_REFUSED, "a software line that is not versions")
    return fresh


def _check_names(manifest: AdapterManifest) -> None:
    for tensor in manifest.tensors:
        if not TENSOR_NAME.fullmatch(tensor.name):
            raise OutboundRefused(
                Reason.OUTBOUND_REFUSED, "a tensor name that is not one of PEFT's"
            )


def _encode(fields: dict[str, Any], update: Update) -> tuple[bytes, float, NDArray[np.float32]]:
    """The update's bytes, its L2 norm, and what the bytes decode to.

    Describes them in the reply's `fields`.
    """
    started = time.monotonic()
    if fields.get("reason") is not None:
        raise OutboundRefused(Reason.OUTBOUND_REFUSED, "a refusal that carries tensors")
    vector = _flat(update)
    norm = _norm(vector)
    if not math.isfinite(norm):
        raise OutboundRefused(Reason.NOT_FINITE, "the update has a value that is not finite")
    if norm > update.max_norm:
        raise OutboundRefused(
            Reason.NORM_TOO_LARGE, f"the update's norm {norm:.4g} is above {update.max_norm:.4g}"
        )
    payload, data, sent = encode_payload(update.codec, vector, update.manifest, update.kind)
    seconds = time.monotonic() - started
    timing = fields["timing"]
    timing |= {"encode": seconds, "total": timing["total"] + seconds}
    fields["payload"] = payload.model_dump()
    return data, norm, sent


def _flat(update: Update) -> NDArray[np.float32]:
    """The declared tensors end to end: float32, (manifest.numel,)."""
    _check_names(update.manifest)
    extra = len(set(update.tensors) - {tensor.name for tensor in update.manifest.tensors})
    if extra:
        raise OutboundRefused(
            Reason.OUTBOUND_REFUSED, f"{extra} tensors that the study does not declare"
        )
    vector = np.empty(update.manifest.numel, dtype=np.float32)
    for tensor, place in update.manifest.slices():
        array = update.tensors.get(tensor.name)
        if array is None:
            raise OutboundRefused(Reason.OUTBOUND_REFUSED, "a declared tensor is missing")
        if array.dtype != np.float32 or array.shape != tensor.shape:
            raise OutboundRefused(
                Reason.OUTBOUND_REFUSED, "a tensor of another shape or dtype than declared"
            )
        vector[place] = array.reshape(-1)
    return vector


def _norm(vector: NDArray[np.float32]) -> float:
    """L2 norm, summed in float64 by blocks so that a large adapter needs no second copy."""
    total = 0.0
    for start in range(0, vector.size, 1 << 22):
        block = vector[start : start + (1 << 22)].astype(np.float64)
        total += float(np.dot(block, block))
    return math.sqrt(total) if math.isfinite(total) else math.inf
