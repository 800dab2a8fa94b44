"""An envelope as Flower's records, and back: the one shape that both directions use.

    RecordDict
      "fedward"   ConfigRecord   header: bytes, signature: bytes
      "payload"   ArrayRecord    "flat": uint8[n]                     (absent when empty)

One array, because Flower's cost is per array object. Flower is imported inside the functions, so
that reading this module costs nothing where there is no Flower. A link that cannot reach its
trainer has no key to sign with; it answers with a Flower error (see `flower.ERROR_PREFIX`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .envelope import MAX_HEADER_BYTES, Envelope
from .errors import ProtocolError
from .framing import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, RecordDict

ENVELOPE: Final = "fedward"
PAYLOAD: Final = "payload"
FLAT: Final = "flat"
MESSAGE_TYPE: Final = "train"  # Flower's name for the ClientApp function that is called


def payload_record(payload: bytes) -> ArrayRecord:
    """The payload as one array.

    Flower's objects are content-addressed: messages that share this record push its chunks once.
    """
    import numpy as np
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({FLAT: Array(np.frombuffer(payload, dtype=np.uint8))})


def pack(envelope: Envelope, *, payload: ArrayRecord | None = None) -> RecordDict:
    """Make the records of `envelope`; `payload` is its payload's record, if made before."""
    from flwr.app import ConfigRecord, RecordDict

    records = RecordDict(
        {ENVELOPE: ConfigRecord({"header": envelope.header, "signature": envelope.signature})}
    )
    if envelope.payload:
        records[PAYLOAD] = payload if payload is not None else payload_record(envelope.payload)
    return records


def unpack(records: RecordDict) -> Envelope:
    """Read the envelope; nothing in it is checked yet but its shape.

    Raises:
        ProtocolError: a record too many or too few, or one of another type or size.
    """
    if not set(records) <= {ENVELOPE, PAYLOAD}:
        raise ProtocolError(f"{len(records)} records; only an envelope and a payload are allowed")
    config = records.config_records.get(ENVELOPE)
    if config is None or set(config) != {"header", "signature"}:
        raise ProtocolError("no envelope record with exactly a header and a signature")
    header, signature = config["header"], config["signature"]
    if not isinstance(header, bytes) or not isinstance(signature, bytes):
        raise ProtocolError("an envelope's header and signature must be bytes")
    if len(header) > MAX_HEADER_BYTES or len(signature) > 1024:
        raise ProtocolError(f"an envelope of {len(header)}+{len(signature)} bytes is too large")
    return Envelope(header, signature, _payload(records))


def _payload(records: RecordDict) -> bytes:
    if PAYLOAD not in records:
        return b""
    record = records.array_records.get(PAYLOAD)
    if record is None or set(record) != {FLAT}:
        raise ProtocolError("the payload record must hold exactly one array named flat")
    array = record[FLAT]
    if array.dtype != "uint8" or len(array.shape) != 1 or array.shape[0] > MAX_PAYLOAD_BYTES:
        raise ProtocolError("the payload must be a flat array of bytes")
    try:
        values = array.numpy()
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise ProtocolError("the payload array cannot be read") from error
    if values.dtype.name != "uint8" or values.ndim != 1:
        raise ProtocolError("the payload must be a flat array of bytes")
    return values.tobytes()
