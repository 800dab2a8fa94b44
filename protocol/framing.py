"""Envelopes over a byte stream: how a link and its trainer speak on their private socket.

A frame is four big-endian lengths' worth of parts: kind (1 byte), header (u32), signature (u16),
payload (u64). Nothing is pickled; a peer can send bytes and nothing else.
"""

import socket
import struct
from enum import IntEnum

from .envelope import MAX_HEADER_BYTES, Envelope
from .errors import ProtocolError

_HEAD = struct.Struct(">BIHQ")
_CHUNK = 1 << 20
MAX_PAYLOAD_BYTES = 4 << 30  # an 8B model's all-linear adapter of rank 256 in float32 is 2.5 GiB


class Kind(IntEnum):
    """What a frame is."""

    REQUEST = 1  # to the trainer: a signed request; answered by REPLY when the work is done
    REPLY = 2
    STATUS = 3  # to the trainer, no parts: answered at once by PROGRESS
    PROGRESS = 4


def _head(kind: Kind, envelope: Envelope) -> bytes:
    return _HEAD.pack(kind, len(envelope.header), len(envelope.signature), len(envelope.payload))


def frame(kind: Kind, envelope: Envelope) -> bytes:
    """One frame as bytes: for a small message over HTTP."""
    return _head(kind, envelope) + envelope.header + envelope.signature + envelope.payload


def parse(data: bytes) -> tuple[Kind, Envelope]:
    """Read one frame from bytes that hold nothing else.

    Raises:
        ProtocolError: not exactly one frame.
    """
    if len(data) < _HEAD.size:
        raise ProtocolError(f"{len(data)} bytes are too few for a frame")
    kind, header, signature, payload = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + header + signature + payload:
        raise ProtocolError("a frame's lengths do not add up to its size")
    parts, start = [], _HEAD.size
    for size in (header, signature, payload):
        parts.append(data[start : start + size])
        start += size
    return _kind(kind), Envelope(*parts)


def send(stream: socket.socket, kind: Kind, envelope: Envelope) -> None:
    """Write one frame."""
    stream.sendall(_head(kind, envelope))
    for part in (envelope.header, envelope.signature, envelope.payload):
        if part:  # sending nothing to a peer that has read all and left is still a broken pipe
            stream.sendall(part)


def receive(stream: socket.socket) -> tuple[Kind, Envelope] | None:
    """Read one frame; None when the peer closed between frames.

    Raises:
        ProtocolError: the stream ended inside a frame, or a length or kind is out of range.
    """
    first = stream.recv(1)
    if not first:
        return None
    kind, header, signature, payload = _HEAD.unpack(first + _exactly(stream, _HEAD.size - 1))
    if header > MAX_HEADER_BYTES or signature > 1024 or payload > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a frame with {header}+{signature}+{payload} bytes is too large")
    return _kind(kind), Envelope(
        _exactly(stream, header), _exactly(stream, signature), _exactly(stream, payload)
    )


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError as error:
        raise ProtocolError(f"unknown frame kind {number}") from error


def _exactly(stream: socket.socket, size: int) -> bytes:
    # Memory follows what has arrived: a length of 4 GiB with nothing behind it must cost nothing.
    parts, missing = [], size
    while missing:
        part = stream.recv(min(missing, _CHUNK))
        if not part:
            raise ProtocolError("the connection ended inside a frame")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
