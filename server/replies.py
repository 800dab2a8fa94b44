"""The aggregator's own door: what a hospital's answer must be before it counts.

Each check has its reason code, which goes into the journal; a refused answer costs the site its
place in the round and nothing else.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol.codec import decode_payload, split_control, vector_digest
from protocol.envelope import SignatureError, check_payload, unseal
from protocol.errors import ProtocolError
from protocol.flower_records import unpack
from protocol.layout import delta_layout, up_layout
from protocol.manifest import AdapterManifest
from protocol.messages import Payload, Reply, Request, Training
from protocol.states import Reason
from protocol.study import StudySettings

from .aggregation import Update
from .checkpoint import Vector

if TYPE_CHECKING:
    from flwr.app import RecordDict


class RefusedError(Exception):
    """An answer that does not count, and why."""

    def __init__(self, reason: Reason, detail: str, size: int = 0) -> None:
        super().__init__(detail)
        self.reason, self.size = reason, size


@dataclass(frozen=True)
class Received:
    """A reply that is the site's own and answers this request; its payload is not read yet."""

    reply: Reply
    payload: bytes
    size: int


def open_reply(
    records: "RecordDict", request: Request, key: Ed25519PublicKey, past: frozenset[str]
) -> Received:
    """Check who wrote a reply, and that it answers `request`; `past` are ids asked before.

    Raises:
        RefusedError: it is not acceptable.
    """
    try:
        envelope = unpack(records)
    except ProtocolError as error:
        raise RefusedError(Reason.MALFORMED, str(error)) from error
    size = envelope.size
    try:
        reply = unseal(envelope, Reply, key, context="reply")
        _check_identity(reply, request, past)
        check_payload(envelope.payload, reply.payload)
    except SignatureError as error:
        raise RefusedError(Reason.BAD_SIGNATURE, str(error), size) from error
    except ProtocolError as error:
        raise RefusedError(Reason.MALFORMED, str(error), size) from error
    except RefusedError as error:
        error.size = size
        raise
    return Received(reply, envelope.payload, size)


def _check_identity(reply: Reply, request: Request, past: frozenset[str]) -> None:
    for field, reason in (
        ("study_id", Reason.WRONG_STUDY),
        ("site", Reason.WRONG_SITE),
    ):
        if getattr(reply, field) != getattr(request, field):
            raise RefusedError(reason, f"the reply's {field} is {getattr(reply, field)!r}")
    if reply.request_id != request.request_id and reply.request_id in past:
        raise RefusedError(Reason.REPLAYED, f"the reply of round {reply.round} came again")
    if reply.round != request.round or reply.task != request.task:
        raise RefusedError(Reason.WRONG_ROUND, f"the reply is to {reply.task} of {reply.round}")
    if reply.request_id != request.request_id:
        raise RefusedError(Reason.REPLAYED, "the reply answers another request")


def read_update(
    received: Received,
    request: Request,
    settings: StudySettings,
    manifest: AdapterManifest,
    *,
    weight: float,
) -> Update:
    """What a site's train reply says about the adapter, decoded and within the study's limits.

    `manifest` is the study's; the reply holds the part of it that trains, at the site's rank, and
    with SCAFFOLD the change of its control variate.

    Raises:
        RefusedError: it is not acceptable.
    """
    payload, training = received.reply.payload, received.reply.training
    if payload is None or training is None:
        raise RefusedError(Reason.MALFORMED, "a train reply without its results", received.size)
    if not 1 <= training.steps <= request.steps:
        detail = f"{training.steps} steps, asked were {request.steps}"
        raise RefusedError(Reason.MALFORMED, detail, received.size)
    layout = up_layout(settings, manifest, request.round, request.rank)
    vector = _decode(received, payload, layout, "delta", settings.codec.up)
    # einsum sums in float64 through a small buffer; no second vector is made.
    norm = math.sqrt(float(np.einsum("i,i->", vector, vector, dtype=np.float64)))
    limit = settings.aggregation.max_update_norm
    if not norm <= limit:
        raise RefusedError(
            Reason.NORM_TOO_LARGE, f"an update of norm {norm:.4g}, at most {limit:g}", received.size
        )
    part = delta_layout(settings, manifest, request.round, request.rank)
    control: Vector | None = None
    if layout != part:
        vector, control = split_control(vector)
    return Update(
        request.site,
        weight,
        vector,
        manifest=None if part == manifest else part,
        control=control,
        steps=training.steps,
    )


def read_initial(received: Received) -> Vector:
    """The first adapter (float32 [n]) of a prepare reply.

    Raises:
        RefusedError: there is none, or it is not the one that the description names.
    """
    payload, description = received.reply.payload, received.reply.description
    if payload is None or description is None:
        raise RefusedError(Reason.MALFORMED, "a prepare reply without its adapter", received.size)
    initial = _decode(received, payload, description.manifest, "adapter", None)
    if vector_digest(initial) != description.initial_digest:
        raise RefusedError(Reason.MALFORMED, "the first adapter is not the one named")
    return initial


def _decode(
    received: Received,
    payload: Payload,
    manifest: AdapterManifest,
    kind: str,
    codec: str | None,
) -> Vector:
    if payload.numel != manifest.numel:
        detail = f"{payload.numel} values, the adapter has {manifest.numel}"
        raise RefusedError(Reason.WRONG_SHAPE, detail, received.size)
    try:
        return decode_payload(
            payload,
            received.payload,
            manifest,
            kind="delta" if kind == "delta" else "adapter",
            codec=codec,
        )
    except ProtocolError as error:
        # The codec's only words for NaN and infinity.
        finite = "not finite" not in str(error)
        reason = Reason.MALFORMED if finite else Reason.NOT_FINITE
        raise RefusedError(reason, str(error), received.size) from error


def weight_of(
    training: Training, request: Request, train_examples: int, settings: StudySettings
) -> float:
    """How much a site's update counts.

    A site writes its own numbers, so what it claims is bounded by what it was asked: the rows of
    this round, never more than steps times batch, nor than the rows it said it has (a site of ten
    rows that repeats them is a site of ten rows), nor than the study's cap.
    """
    aggregation = settings.aggregation
    if aggregation.weighting == "equal":
        return 1.0
    if aggregation.weighting == "inverse-loss":
        return 1.0 / max(training.loss_mean, aggregation.inverse_loss_floor)
    asked = request.steps * settings.training.batch_size
    return float(min(training.examples, asked, train_examples, aggregation.max_examples))
