"""Aggregating large adapters: time and memory beside Flower's FedAvg, and the cost of FlexLoRA.

    python -m bench.aggregation [--quick]

The adapter is LoRA r 32 on all linear layers of Llama-3-8B: 448 tensors, 83.9 M parameters, 320 MiB
in float32. Each arm is a process of its own, so that its peak resident memory is its own:

    flower    flwr.serverapp.strategy.FedAvg.aggregate_train on all replies, as Flower calls it
    records   our aggregator on the same records, which stay in memory as they do for Flower
    stream    our aggregator as in a study: each reply is decoded, checked, added and freed
    int4      the same with replies in int4

The arms give the same adapter, which is checked. Beside wall-clock seconds stand CPU seconds, which
other work on the machine changes less; the ratio is theirs. Last, the rank-r truncation of one
4096 x 4096 product of eight sites: through the stacked factors, and by the dense decomposition.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.codec import decode_payload, encode_payload
from protocol.manifest import AdapterManifest, TensorSpec
from protocol.study import StudySettings
from server.aggregation import Aggregator, ServerState, Update, make_aggregator
from server.aggregation._lora import decompose

from .report import console, write_results

Vector = npt.NDArray[np.float32]

LINEAR = {  # Llama-3-8B: inputs, outputs
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 1024),
    "self_attn.v_proj": (4096, 1024),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (4096, 14336),
    "mlp.up_proj": (4096, 14336),
    "mlp.down_proj": (14336, 4096),
}
RANK, LAYERS, QUICK_LAYERS = 32, 32, 2


def adapter_manifest(layers: int) -> AdapterManifest:
    """LoRA on every linear layer of the first `layers` blocks."""
    tensors = [
        TensorSpec(name=f"model.layers.{layer}.{module}.lora_{factor}.weight", shape=shape)
        for layer in range(layers)
        for module, (width, height) in LINEAR.items()
        for factor, shape in (("A", (RANK, width)), ("B", (height, RANK)))
    ]
    return AdapterManifest(tensors=tuple(sorted(tensors, key=lambda tensor: tensor.name)))


def updates(manifest: AdapterManifest, count: int) -> Iterator[Vector]:
    """The same `count` updates in every arm, each other than the rest."""
    base = np.random.default_rng(0).standard_normal(manifest.numel, np.float32)
    for k in range(count):
        yield np.roll(base, 1001 * k)


def weight(k: int) -> float:
    return float(100 + 7 * k)


def aggregator(manifest: AdapterManifest, lora: str = "factors") -> Aggregator:
    settings = StudySettings.model_validate(
        {"name": "bench", "model": {"base": "base"}, "aggregation": {"lora": lora}}
    )
    zero = np.zeros(manifest.numel, np.float32)
    return make_aggregator(settings, manifest, zero, round_number=1, state=ServerState())


def flower_replies(manifest: AdapterManifest, count: int) -> list[Any]:
    """Replies as Flower's Message API hands them to a strategy."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    # A ServerApp's process has these from the SuperLink; Message refuses to be made without.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    replies = []
    for k, vector in enumerate(updates(manifest, count)):
        arrays = ArrayRecord(
            {t.name: Array(vector[where].reshape(t.shape)) for t, where in manifest.slices()}
        )
        content = RecordDict(
            {"arrays": arrays, "metrics": MetricRecord({"num-examples": weight(k)})}
        )
        replies.append(Message(content, dst_node_id=k + 1, message_type="train"))
    return replies


class Watch:
    """Adds up wall-clock and CPU seconds of the blocks it is entered for."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begun[0]
        self.cpu_seconds += time.process_time() - self._begun[1]


def arm_flower(manifest: AdapterManifest, count: int, watch: Watch) -> Vector:
    """Flower's aggregate_train; its result as one vector."""
    from flwr.serverapp.strategy import FedAvg

    replies = flower_replies(manifest, count)
    with watch:
        arrays, _ = FedAvg().aggregate_train(1, replies)
    assert arrays is not None
    values = arrays.to_numpy_ndarrays()
    return np.concatenate([value.reshape(-1) for value in values]).astype(np.float32)


def arm_records(manifest: AdapterManifest, count: int, watch: Watch) -> Vector:
    """Reading, adding and finishing, from the same records."""
    replies = flower_replies(manifest, count)
    with watch:
        ours, delta = aggregator(manifest), np.empty(manifest.numel, np.float32)
        for k, reply in enumerate(replies):
            arrays = reply.content["arrays"]
            for tensor, where in manifest.slices():
                delta[where] = arrays[tensor.name].numpy().reshape(-1)
            ours.add(Update(f"site-{k}", weight(k), delta))
        return ours.finish().adapter


def arm_stream(manifest: AdapterManifest, count: int, watch: Watch, codec: str) -> Vector:
    """Decoding, checking both digests, adding and finishing; the sites' encoding is not counted."""
    with watch:
        ours = aggregator(manifest)
    for k, vector in enumerate(updates(manifest, count)):
        payload, data, _ = encode_payload(codec, vector, manifest, "delta")
        with watch:
            delta = decode_payload(payload, data, manifest, kind="delta", codec=codec)
            ours.add(Update(f"site-{k}", weight(k), delta))
            del delta
        del payload, data
    with watch:
        return ours.finish().adapter


def run_arm(name: str, layers: int, count: int) -> None:
    """In the arm's own process: measure, print one line of JSON."""
    manifest, watch = adapter_manifest(layers), Watch()
    if name == "flower":
        adapter = arm_flower(manifest, count, watch)
    elif name == "records":
        adapter = arm_records(manifest, count, watch)
    else:
        adapter = arm_stream(manifest, count, watch, {"stream": "fp32"}.get(name, name))
    figures = {
        "arm": name,
        "sites": count,
        "parameters": manifest.numel,
        "seconds": watch.seconds,
        "cpu_seconds": watch.cpu_seconds,
        # kilobytes on Linux
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "sample": adapter[:: max(1, adapter.size // 1000)].tolist(),
    }
    print(json.dumps(figures))


def measure_arm(name: str, layers: int, count: int) -> dict[str, Any]:
    """Run one arm in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.aggregation"]
    command += ["--arm", name, "--layers", str(layers), "--sites", str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    console.print(f"{name}, {count} sites: {figures['seconds']:.2f} s")
    return figures


def measure_svd(size: int, *, sites: int = 8, rank: int = 32) -> dict[str, float]:
    """Rank-`rank` truncation of Σ B_k A_k, [size, size], both ways."""
    rng = np.random.default_rng(1)
    b = rng.standard_normal((size, sites * rank), np.float32)
    a = rng.standard_normal((sites * rank, size), np.float32)
    decompose(b, a)  # the first call starts BLAS's threads
    ours, dense = Watch(), Watch()
    with ours:
        left, right, lost = decompose(b, a).top(rank)
    with dense:
        u, sigma, vt = np.linalg.svd(b @ a, full_matrices=False)
        dense_product = (u[:, :rank] * sigma[:rank]) @ vt[:rank]
    difference = float(np.linalg.norm(left @ right - dense_product) / np.linalg.norm(dense_product))
    energy = float(np.sum(sigma.astype(np.float64) ** 2))
    return {
        "size": size,
        "seconds_factors": ours.seconds,
        "seconds_dense": dense.seconds,
        "cpu_seconds_factors": ours.cpu_seconds,
        "cpu_seconds_dense": dense.cpu_seconds,
        "ratio": dense.cpu_seconds / ours.cpu_seconds,
        "difference": difference,
        "captured_energy": 1 - lost / energy,
    }


def measure_flexlora(layers: int, sites: int = 8) -> dict[str, float]:
    """Every pair of an adapter of `layers` layers through FlexLoRA."""
    manifest, watch = adapter_manifest(layers), Watch()
    ours = aggregator(manifest, "flexlora")
    for k, vector in enumerate(updates(manifest, sites)):
        with watch:
            ours.add(Update(f"site-{k}", weight(k), vector))
    with watch:
        ours.finish()
    return {
        "sites": sites,
        "parameters": manifest.numel,
        "seconds": watch.seconds,
        "cpu_seconds": watch.cpu_seconds,
    }


def main() -> None:
    """Run every arm, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two layers in place of 32")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=QUICK_LAYERS, help=argparse.SUPPRESS)
    parser.add_argument("--sites", type=int, default=20, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        run_arm(arguments.arm, arguments.layers, arguments.sites)
        return
    layers = QUICK_LAYERS if arguments.quick else LAYERS
    arms = [("flower", 20), ("records", 20), ("stream", 20), ("int4", 20), ("stream", 5)]
    arms.append(("stream", 40))
    rows = [measure_arm(name, layers, count) for name, count in arms]
    flower = rows[0]
    for row in rows[1:3]:
        assert np.allclose(row["sample"], flower["sample"], atol=1e-5), "the arms disagree"
    svd = measure_svd(1024 if arguments.quick else 4096)
    flexlora = measure_flexlora(min(layers, 4))
    write_results(
        "aggregation",
        f"FedAvg of {flower['parameters'] / 1e6:.1f} M parameters",
        ["arm", "sites", "seconds", "CPU s", "to Flower's", "peak MiB", "to Flower's"],
        [
            [
                row["arm"],
                str(row["sites"]),
                f"{row['seconds']:.2f}",
                f"{row['cpu_seconds']:.2f}",
                f"{row['cpu_seconds'] / flower['cpu_seconds']:.2f}" if row["sites"] == 20 else "",
                f"{row['peak_rss_bytes'] / 2**20:,.0f}",
                f"{row['peak_rss_bytes'] / flower['peak_rss_bytes']:.2f}",
            ]
            for row in rows
        ],
        {
            "fedavg": [{k: v for k, v in row.items() if k != "sample"} for row in rows],
            "svd": svd,
            "flexlora": flexlora,
        },
    )
    console.print(
        f"rank 32 of {svd['size']} x {svd['size']}, 8 sites: factors "
        f"{svd['cpu_seconds_factors']:.3f} CPU s, dense {svd['cpu_seconds_dense']:.2f}, "
        f"{svd['ratio']:.0f} times; products differ by "
        f"{svd['difference']:.1e}, energy kept {svd['captured_energy']:.0%}\n"
        f"FlexLoRA of {flexlora['parameters'] / 1e6:.1f} M parameters, {flexlora['sites']} sites: "
        f"{flexlora['cpu_seconds']:.1f} CPU s"
    )


if __name__ == "__main__":
    main()
