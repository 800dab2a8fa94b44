"""The training benchmarks measure the same work in every arm."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import gpu, report
from bench.trainer import compare, flashcards, padded_batch


def test_both_arms_of_the_cpu_benchmark_train_the_same() -> None:
    """Step by step the same loss, and only real tokens are counted."""
    torch.set_num_threads(1)
    shape = gpu.TINY | {"vocab_size": 320}
    plain, ours = compare(shape, steps=2, batch_size=4)
    assert plain.losses == pytest.approx(ours.losses, rel=1e-4)
    tokens = flashcards(12, 320)
    assert plain.tokens == ours.tokens == sum(tokens.length(row) for row in range(4, 12))


def test_the_padded_arm_is_padded_as_hugging_face_does() -> None:
    """Labels only on responses, mask on what is real."""
    tokens = flashcards(3, 320)
    batch = padded_batch(tokens, np.arange(3), torch.device("cpu"))
    assert batch["attention_mask"].sum() == tokens.starts[-1]
    responses = sum(tokens.length(row) - int(tokens.prompts[row]) for row in range(3))
    assert (batch["labels"] != -100).sum() == responses


def test_the_gpu_benchmark_runs_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the GPU call works on a CPU, and the 4-bit arms' losses are near each other."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    found = gpu.main(["--tiny"])
    usual, ours = found["usual"], found["fedward"]
    assert isinstance(usual, gpu.Measured)
    assert isinstance(ours, gpu.Measured)
    assert usual.losses == pytest.approx(ours.losses, rel=0.02)
    assert usual.tokens == ours.tokens > 0
    assert (tmp_path / "gpu-tiny.json").exists()
