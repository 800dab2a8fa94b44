"""Every codec: what it keeps, what it costs, and its mathematics against a plain reference."""

import numpy as np
import pytest

from protocol.codec import MAX_MAGNITUDE, get_codec, known_codecs
from protocol.errors import ProtocolError, SettingsError
from protocol.manifest import AdapterManifest, TensorSpec

CODECS = [name + more for name in (*known_codecs(), "topk-0.01") for more in ("", "+zstd")]
SIZES = [1, 2, 63, 64, 65, 129, 4096, 300_001]


def manifest(numel: int) -> AdapterManifest:
    return AdapterManifest(tensors=(TensorSpec(name="w", shape=(numel,)),))


def normal(numel: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(numel) * scale).astype(np.float32)


def coded(name: str, vector: np.ndarray) -> np.ndarray:
    codec = get_codec(name)
    return codec.decode(codec.encode(vector, manifest(vector.size)), vector.size)


def error(name: str, vector: np.ndarray) -> float:
    return float(np.linalg.norm(coded(name, vector) - vector) / np.linalg.norm(vector))


@pytest.mark.parametrize("name", CODECS)
def test_round_trip(name: str) -> None:
    """Whatever the length and magnitude, decoding gives n finite values, and the same each time."""
    codec = get_codec(name)
    assert codec.name == name
    for seed, numel in enumerate(SIZES):
        for scale in (1e-30, 1e-6, 1.0, 1e6):
            vector = normal(numel, scale, seed)
            data = codec.encode(vector, manifest(numel))
            assert data == codec.encode(vector.copy(), manifest(numel))
            assert len(data) <= codec.max_size(numel)
            decoded = codec.decode(data, numel)
            assert decoded.dtype == np.float32
            assert decoded.shape == (numel,)
            assert np.array_equal(decoded, codec.decode(data, numel))
            if codec.lossless:
                assert np.array_equal(decoded, vector)
            elif numel >= 4096 and not name.startswith("topk"):
                exact = vector.astype(np.float64)
                assert np.linalg.norm(decoded - exact) < 0.36 * np.linalg.norm(exact)


@pytest.mark.parametrize("name", CODECS)
def test_extremes(name: str) -> None:
    """Zeros stay zeros; a lone value, the least float32 or the limit, comes back finite."""
    numel = 200
    assert not coded(name, np.zeros(numel, np.float32)).any()
    for value in (1e-45, 1e-38, 3e-39, MAX_MAGNITUDE, -MAX_MAGNITUDE):
        vector = np.zeros(numel, np.float32)
        vector[77] = value
        decoded = coded(name, vector)
        assert np.isfinite(decoded).all()
        if abs(value) > 1 and not name.startswith("int2"):
            assert decoded[77] == pytest.approx(value, rel=0.15)


@pytest.mark.parametrize("name", CODECS)
def test_encode_refuses(name: str) -> None:
    """A vector that is not finite, too large, of the wrong type or length is not encoded."""
    good = normal(100)
    for value in (np.nan, np.inf, -np.inf, 2 * MAX_MAGNITUDE):
        bad = good.copy()
        bad[50] = value
        with pytest.raises(ProtocolError):
            get_codec(name).encode(bad, manifest(100))
    for bad in (good.astype(np.float64), good[:99], good.reshape(10, 10)):
        with pytest.raises(ProtocolError):
            get_codec(name).encode(bad, manifest(100))


@pytest.mark.parametrize(
    ("name", "ratio", "limit"),
    [
        ("fp16", 2.0, 3e-4),
        ("bf16", 2.0, 2e-3),
        ("int8", 3.88, 0.0061),
        ("int4", 7.53, 0.109),
        ("nf4", 7.53, 0.093),
        ("int2", 14.2, 0.345),
        ("int8-s8", 3.93, 0.0065),
        ("int4-s8", 7.75, 0.116),
        ("int2-s8", 15.0, 0.35),
        ("topk-0.1", 15.0, 0.76),
    ],
)
def test_ratio_and_error(name: str, ratio: float, limit: float) -> None:
    """On a normal vector each codec has the size and the relative error that its table says."""
    vector = normal(1 << 20, 3e-5)
    size = len(get_codec(name).encode(vector, manifest(vector.size)))
    assert 4 * vector.size / size > ratio - 0.006
    assert error(name, vector) < limit


def test_bf16_is_torch_bf16() -> None:
    """Our bfloat16 rounds as torch's does, halves to even included."""
    torch = pytest.importorskip("torch")
    vector = normal(100_000)
    vector[:3] = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    expected = torch.from_numpy(vector).to(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(coded("bf16", vector), expected)


@pytest.mark.parametrize(("name", "levels"), [("int8", 127), ("int4", 7)])
def test_integer_blocks_against_a_loop(name: str, levels: int) -> None:
    """Each value is within half a step of what came back, the step being the block's largest
    magnitude over the levels and at most one float16 unit more."""
    vector = normal(1000, 1e-4)
    decoded = coded(name, vector)
    for start in range(0, vector.size, 64):
        block = vector[start : start + 64].astype(np.float64)
        step = np.abs(block).max() / levels * (1 + 2**-10)
        assert np.abs(block - decoded[start : start + 64]).max() <= step / 2 * (1 + 1e-5)
        codes = decoded[start : start + 64].astype(np.float64) / (step / (1 + 2**-10))
        assert np.abs(codes - np.rint(codes)).max() < levels * 2**-9


def test_nf4_takes_the_nearest_level() -> None:
    """No other of QLoRA's sixteen levels is nearer than the one chosen."""
    from protocol.codec._blocks import _NF4

    vector = normal(640)
    decoded = coded("nf4", vector).reshape(-1, 64)
    for block, got in zip(vector.reshape(-1, 64), decoded, strict=True):
        scale = np.abs(got).max() or 1.0
        nearest = np.abs(block[:, None] - _NF4[None, :] * scale).argmin(axis=1)
        assert np.allclose(got, _NF4[nearest] * scale, rtol=1e-3)


def test_int2_is_exact_on_equal_magnitudes() -> None:
    """After a step of AdamW all changes are about as large: then only the signs matter."""
    signs = np.sign(normal(6400)) * np.float32(1e-4)
    assert error("int2", signs) < 1e-3


def test_small_blocks_beside_large_ones() -> None:
    """A block a million times smaller than its neighbour keeps its own precision."""
    vector = normal(128)
    vector[64:] *= np.float32(1e-6)
    for name, limit in (("int8", 0.01), ("int4", 0.13), ("nf4", 0.12), ("int2", 0.4)):
        tail = coded(name, vector)[64:]
        assert np.linalg.norm(tail - vector[64:]) < limit * np.linalg.norm(vector[64:])


def test_topk_against_a_sort() -> None:
    """The largest k values come back at float16 precision, the first among equals, all else 0."""
    rng = np.random.default_rng(3)
    for fraction in (0.0001, 0.01, 0.1, 0.5):
        for numel in (1, 5, 64, 1000, 12_345):
            vector = rng.integers(-50, 50, numel).astype(np.float32)
            decoded = coded(f"topk-{fraction:f}".rstrip("0"), vector)
            k = max(1, int(numel * fraction + 0.5))
            expected = np.zeros_like(vector)
            order = np.argsort(-np.abs(vector), kind="stable")[:k]
            expected[order] = vector[order]
            assert np.array_equal(decoded, expected)


def test_zstd_never_costs_much() -> None:
    """On pure noise the compressed form is at most a hundredth larger; on zeros it is tiny."""
    for name in ("fp32", "int8", "int4", "int2"):
        plain, packed = get_codec(name), get_codec(f"{name}+zstd")
        bits = np.random.default_rng(1).integers(0x3F000000, 0x3F800000, 1 << 16, np.uint32)
        noise = bits.view(np.float32)
        layout = manifest(noise.size)
        assert len(packed.encode(noise, layout)) < 1.01 * len(plain.encode(noise, layout))
        assert len(packed.encode(np.zeros_like(noise), layout)) < 200


@pytest.mark.parametrize(
    "name", ["", "fp64", "int3", "topk", "topk-1", "topk-0.9", "topk-0.10", "topk-0", "int4+gzip"]
)
def test_unknown_names(name: str) -> None:
    """A name that is no codec is refused with those that are."""
    with pytest.raises(SettingsError, match="codec"):
        get_codec(name)
