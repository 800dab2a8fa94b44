"""What each codec saves, what it loses, and how fast it is.

    python -m bench.codecs [--quick]

The vector is as long as FlowerTune's medical adapter (LoRA r 32 on q and v of Llama-3-8B,
13,631,488 values). Error is the L2 norm of what was lost over that of the vector: for independent
normal values, and for the change that ten steps of AdamW make on noisy gradients, which is what
travels. GB/s counts float32 bytes for each second of one CPU, best of three: CPU seconds, so that
what else the machine does counts little.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from protocol.codec import get_codec, known_codecs
from protocol.manifest import AdapterManifest, TensorSpec

from .report import write_results

Vector = npt.NDArray[np.float32]

NUMEL, QUICK_NUMEL = 13_631_488, 1 << 20


def adamw_change(numel: int, rng: np.random.Generator, *, steps: int = 10) -> Vector:
    """Ten steps of AdamW (rate 5e-5) on a gradient whose noise is three times its mean."""
    mean = rng.standard_normal(numel, np.float32)
    m, v, x = (np.zeros(numel, np.float32) for _ in range(3))
    for t in range(1, steps + 1):
        g = mean + 3 * rng.standard_normal(numel, np.float32)
        m = np.float32(0.9) * m + np.float32(0.1) * g
        v = np.float32(0.999) * v + np.float32(0.001) * g * g
        rate, correction = np.float32(5e-5 / (1 - 0.9**t)), np.float32(1 - 0.999**t)
        x -= rate * m / (np.sqrt(v / correction) + np.float32(1e-8))
    return x


def best_of(count: int, work: Callable[[], object]) -> float:
    """The shortest of `count` runs, in CPU seconds."""
    times = []
    for _ in range(count):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times)


def measure(name: str, normal: Vector, change: Vector, repeats: int) -> dict[str, float | str]:
    """One row."""
    codec = get_codec(name)
    manifest = AdapterManifest(tensors=(TensorSpec(name="w", shape=(normal.size,)),))

    def error(vector: Vector) -> float:
        decoded = codec.decode(codec.encode(vector, manifest), vector.size)
        return float(np.linalg.norm(decoded - vector) / np.linalg.norm(vector))

    data = codec.encode(normal, manifest)
    gigabytes = normal.nbytes / 1e9
    return {
        "codec": name,
        "bits": 8 * len(data) / normal.size,
        "ratio": normal.nbytes / len(data),
        "ratio_adamw": change.nbytes / len(codec.encode(change, manifest)),
        "error": error(normal),
        "error_adamw": error(change),
        "encode_gb_s": gigabytes / best_of(repeats, lambda: codec.encode(normal, manifest)),
        "decode_gb_s": gigabytes / best_of(repeats, lambda: codec.decode(data, normal.size)),
    }


def main() -> None:
    """Measure every codec, plain and compressed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a million values")
    quick = parser.parse_args().quick
    rng = np.random.default_rng(0)
    numel = QUICK_NUMEL if quick else NUMEL
    normal = rng.standard_normal(numel, np.float32) * np.float32(1e-4)
    change = adamw_change(numel, rng)
    names = [name + more for name in (*known_codecs(), "topk-0.01") for more in ("", "+zstd")]
    rows = [measure(name, normal, change, 3) for name in names]
    write_results(
        "codecs",
        f"Codecs, {numel / 1e6:.1f} M values; write and read in GB/s",
        ["codec", "ratio", "AdamW", "error", "AdamW", "write", "read"],
        [
            [
                str(row["codec"]),
                f"{row['ratio']:.2f}",
                f"{row['ratio_adamw']:.2f}",
                f"{row['error']:.2%}",
                f"{row['error_adamw']:.2%}",
                f"{row['encode_gb_s']:.2f}",
                f"{row['decode_gb_s']:.2f}",
            ]
            for row in rows
        ],
        rows,
    )


if __name__ == "__main__":
    main()
