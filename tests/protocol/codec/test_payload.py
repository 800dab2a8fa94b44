"""What arrives is what was sent, or it is refused: the adversary's table."""

import hashlib
import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import zstandard

from protocol.codec import decode_payload, encode_payload, get_codec, known_codecs, vector_digest
from protocol.errors import ProtocolError
from protocol.manifest import AdapterManifest, TensorSpec
from protocol.messages import Payload

CODECS = [name + more for name in known_codecs() for more in ("", "+zstd")]
NUMEL = 200
MANIFEST = AdapterManifest(tensors=(TensorSpec(name="w", shape=(NUMEL,)),))
VECTOR = (np.random.default_rng(5).standard_normal(NUMEL) * 1e-3).astype(np.float32)


def encoded(name: str) -> bytes:
    return get_codec(name).encode(VECTOR, MANIFEST)


def described(name: str, data: bytes, decoded: np.ndarray = VECTOR) -> Payload:
    """What a hostile site would sign: digests that fit its bytes."""
    return Payload(
        codec=name,
        kind="delta",
        numel=NUMEL,
        size=max(1, len(data)),
        digest=hashlib.sha256(data).hexdigest(),
        decoded_digest=vector_digest(decoded),
    )


@pytest.mark.parametrize("name", CODECS)
def test_both_ends_agree(name: str) -> None:
    """The receiver arrives at the sender's vector bit for bit."""
    payload, data, sent = encode_payload(name, VECTOR, MANIFEST, "delta")
    assert payload.size == len(data)
    got = decode_payload(payload, data, MANIFEST, kind="delta", codec=name)
    assert got.tobytes() == sent.tobytes()


@pytest.mark.parametrize("name", CODECS)
def test_truncated_at_every_length(name: str) -> None:
    """No beginning of an encoding, and no encoding with a byte more, is one."""
    data = encoded(name)
    for bad in [*(data[:length] for length in range(len(data))), data + b"\0"]:
        with pytest.raises(ProtocolError):
            get_codec(name).decode(bad, NUMEL)
        with pytest.raises(ProtocolError):
            decode_payload(described(name, bad), bad, MANIFEST, kind="delta")


@pytest.mark.parametrize("name", CODECS)
def test_bit_flips(name: str) -> None:
    """A flipped bit is refused; where the bytes still decode, the result is finite and in range."""
    payload, data, _ = encode_payload(name, VECTOR, MANIFEST, "delta")
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            decode_payload(payload, bytes(bad), MANIFEST, kind="delta")
        try:
            vector = get_codec(name).decode(bytes(bad), NUMEL)
        except ProtocolError:
            continue
        assert vector.shape == (NUMEL,)
        assert np.isfinite(vector).all()


@pytest.mark.parametrize("name", CODECS)
def test_noise(name: str) -> None:
    """Random bytes, with or without a true header, are refused or give finite values."""
    rng = np.random.default_rng(7)
    data = encoded(name)
    for _ in range(300):
        head = int(rng.integers(0, 24))
        bad = data[:head] + rng.bytes(len(data) - head)
        try:
            vector = get_codec(name).decode(bad, NUMEL)
        except ProtocolError:
            continue
        assert np.isfinite(vector).all()


@pytest.mark.parametrize("name", CODECS)
def test_wrong_codec(name: str) -> None:
    """Bytes of one codec are not read by another."""
    data = encoded(name)
    for other in set(CODECS) - {name}:
        with pytest.raises(ProtocolError):
            decode_payload(described(other, data), data, MANIFEST, kind="delta")


def _header(exponent: int = 0, numel: int = NUMEL, tag: int = 5) -> bytes:
    return struct.pack("<4sBBhQ", b"FWC1", tag, 0, exponent, numel)


def _int4(scale: float, code: int = 0x99, exponent: int = 0) -> bytes:
    filling = bytes([0x88])
    blocks = bytes([code]) * 96 + (filling * 24 + filling * 8)
    return _header(exponent) + np.full(4, scale, "<f2").tobytes() + blocks


def _topk(places: bytes) -> bytes:
    body = encoded("topk-0.1")
    return body[: len(body) - len(places)] + places


def _spliced(name: str, value: float) -> bytes:
    """A 16- or 32-bit encoding with one value put in by hand."""
    data = bytearray(encoded(name))
    item = {"fp32": 4, "fp16": 2, "bf16": 2}[name]
    bits = np.float32(value)
    raw = bits.astype(np.float16).tobytes() if name == "fp16" else bits.tobytes()[-item:]
    data[16 + 8 * item : 16 + 9 * item] = raw
    return bytes(data)


ADVERSARY: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": ("int4", lambda: b""),
    "NaN in fp32": ("fp32", lambda: _spliced("fp32", np.nan)),
    "infinity in fp32": ("fp32", lambda: _spliced("fp32", np.inf)),
    "absurd value in fp32": ("fp32", lambda: _spliced("fp32", 1e30)),
    "NaN in fp16": ("fp16", lambda: _spliced("fp16", np.nan)),
    "infinity in fp16": ("fp16", lambda: _spliced("fp16", -np.inf)),
    "NaN in bf16": ("bf16", lambda: _spliced("bf16", np.nan)),
    "absurd value in bf16": ("bf16", lambda: _spliced("bf16", -1e38)),
    "NaN scale": ("int4", lambda: _int4(np.nan)),
    "infinite scale": ("int4", lambda: _int4(np.inf)),
    "negative scale": ("int4", lambda: _int4(-1.0)),
    "absurd scale": ("int4", lambda: _int4(60000.0, exponent=41)),
    "absurd exponent": ("int4", lambda: _int4(1.0, exponent=127)),
    "tiny exponent": ("int4", lambda: _int4(1.0, exponent=-120)),
    "code out of range": ("int4", lambda: _int4(1.0, code=0x90)),
    "wrong count in the header": ("int4", lambda: _header(numel=199) + _int4(1.0)[16:]),
    "huge count in the header": ("int4", lambda: _header(numel=2**60) + _int4(1.0)[16:]),
    "hidden bytes in the filling": ("int4", lambda: _int4(1.0)[:-1] + b"\x99"),
    "places: too many": ("topk-0.1", lambda: _topk(b"\xff\xff\xff\xff")),
    "places: none": ("topk-0.1", lambda: _topk(b"\0" * 6)),
    "places: all at the end": ("topk-0.1", lambda: _topk(b"\0\0\0\xf0\xff\xff")),
    "bomb": ("int4+zstd", lambda: zstandard.compress(b"\0" * (256 << 20))),
    "bomb that hides its size": (
        "int4+zstd",
        lambda: zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * (64 << 20)),
    ),
    "a frame too many": ("int4+zstd", lambda: encoded("int4+zstd") + zstandard.compress(b"x")),
    "an empty frame": ("int4+zstd", lambda: zstandard.compress(b"")),
    "no frame": ("fp32+zstd", lambda: b"not a frame at all"),
}


def test_the_table_speaks_of_the_format() -> None:
    """The honest version of the table's int4 encoding is accepted, so each entry fails for its
    own reason."""
    assert np.array_equal(
        get_codec("int4").decode(_int4(1.0), NUMEL)[:192], np.ones(192, np.float32)
    )


@pytest.mark.parametrize("case", ADVERSARY)
def test_adversary(case: str) -> None:
    """Each of a hostile site's payloads is refused, though its digests are right, and costs
    little memory."""
    name, make = ADVERSARY[case]
    data = make()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode_payload(described(name, data), data, MANIFEST, kind="delta")
        with pytest.raises(ProtocolError):
            get_codec(name).decode(data, NUMEL)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_decoding_takes_a_small_multiple() -> None:
    """Decoding a million values takes less than six times their float32 size."""
    numel = 1 << 20
    layout = AdapterManifest(tensors=(TensorSpec(name="w", shape=(numel,)),))
    vector = np.random.default_rng(0).standard_normal(numel).astype(np.float32)
    for name in [*CODECS, "topk-0.5"]:
        codec = get_codec(name)
        data = codec.encode(vector, layout)
        tracemalloc.start()
        codec.decode(data, numel)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 * 4 * numel, name


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "adapter"},
        {"codec": "int8"},
        {"codec": "no-such-codec"},
        {"numel": NUMEL + 1},
        {"size": 7},
        {"digest": "0" * 64},
        {"decoded_digest": "0" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_description_must_fit(change: dict[str, object]) -> None:
    """A header that says anything else than the bytes beside it is refused."""
    payload, data, _ = encode_payload("int4", VECTOR, MANIFEST, "delta")
    bad = payload.model_copy(update=change)
    with pytest.raises(ProtocolError):
        decode_payload(bad, data, MANIFEST, kind="delta")


def test_agreed_codec() -> None:
    """A payload in another codec than the agreed one is refused, though it is sound."""
    payload, data, _ = encode_payload("int8", VECTOR, MANIFEST, "delta")
    with pytest.raises(ProtocolError, match="agreed"):
        decode_payload(payload, data, MANIFEST, kind="delta", codec="int4")
