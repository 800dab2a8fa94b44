"""The same trainer on a CUDA GPU: NF4 with bfloat16 products."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hospital_node.trainer.adapter import initial
from hospital_node.trainer.health import HealthReader
from protocol.messages import Task
from protocol.states import TrainerState

from .lab import SiteFolder, request, study, with_adapter
from .test_tasks import Lab

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


class GpuSite(SiteFolder):
    """A hospital that asks for its GPU."""

    def write(self, **kwargs: str) -> Path:  # type: ignore[override]
        path = super().write(**kwargs)
        path.write_text(path.read_text().replace('device = "cpu"', 'device = "cuda"'))
        return path


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_round_on_a_gpu(
    bases: Callable[[str], Path], tmp_path: Path, kind: str, quantization: str
) -> None:
    """It learns, begins with the CPU's adapter, and reports the GPU's memory."""
    lab = Lab(GpuSite(tmp_path / "h", bases(kind)))
    cpu = Lab(SiteFolder(tmp_path / "c", bases(kind)))
    settings = study(
        model={"base": "any", "quantization": quantization},
        training={"steps": 6, "batch_size": 8, "learning_rate": 0.01, "max_length": 256},
    )
    first = lab.prepare(settings)
    assert first.initial_digest == cpu.prepare(settings).initial_digest
    vector = initial(first.manifest, settings.seed)
    answer, delta = lab.train(settings, vector, 1)
    asked = request(Task.EVALUATE, settings)
    after = lab.ask(*with_adapter(asked, first.manifest, vector + delta)).reply.evaluation
    on_cpu = cpu.ask(*with_adapter(asked, first.manifest, vector + delta)).reply.evaluation
    assert answer.reply.evaluation is not None
    assert after is not None
    assert on_cpu is not None
    assert after.loss < 0.9 * answer.reply.evaluation.loss
    assert after.loss == pytest.approx(on_cpu.loss, rel=0.05)
    health = HealthReader(tmp_path, lambda: 1).read(TrainerState.IDLE)
    assert health.gpus[0].memory_used_bytes > 0


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw-8bit"}])
def test_packed_rows_train_as_padded_batches_do_on_a_gpu(
    bases: Callable[[str], Path], tmp_path: Path, changes: dict[str, str]
) -> None:
    """NF4 and bfloat16: the losses of both layouts are the same within bfloat16."""
    lab = Lab(GpuSite(tmp_path, bases("llama")))
    settings = study(
        model={"base": "any", "quantization": "nf4"},
        training={"steps": 4, "batch_size": 8, "learning_rate": 0.01, "max_length": 256} | changes,
    )
    first = lab.prepare(settings)
    resident = lab.tasks.shelf.get(settings.model)
    assert resident.packing
    vector = initial(first.manifest, settings.seed)
    losses = []
    for packing in (True, False):
        resident.packing = packing
        training = lab.train(settings, vector, 1)[0].reply.training
        assert training is not None
        losses.append((training.loss_first, training.loss_last))
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
