"""`fedward demo`: three hospitals on this machine, from nothing to a result.

The model and the data are made by `fedward.embedded`, so nothing is downloaded. The study is the
one in `demo_study`, and anyone can run it again with `fedward run`.
"""

from pathlib import Path

import tomli_w

from protocol.files import write_atomic
from protocol.site import DataSettings
from protocol.study import StudySettings

from . import embedded
from .embedded.corpus import write_hospital_data
from .federation import FederationSettings, LocalSite

MODEL = Path(embedded.__file__).parent / "weights"
HOSPITALS = ("st-mary", "riverside", "northfield")


def demo_study(model: Path) -> StudySettings:
    """The demo's study: QLoRA on the embedded model, and each hospital alone to compare with."""
    demo = embedded.DEMO
    return StudySettings.model_validate(
        {
            "name": "demo",
            "model": {"base": str(model), "quantization": "nf4"},
            "adapter": {
                "rank": demo.rank,
                "alpha": demo.alpha,
                "target_modules": demo.target_modules,
            },
            "training": {
                "steps": demo.steps,
                "batch_size": demo.batch_size,
                "learning_rate": demo.learning_rate,
                "max_length": 256,
            },
            "evaluation": {"lone_baseline": True},
            "rounds": {
                "count": demo.rounds,
                "minimum_sites": 2,
                "deadline_seconds": 300,
                "join_seconds": 180,
            },
        }
    )


def demo_federation(folder: Path) -> FederationSettings:
    """Write the hospitals' data below `folder` (the same bytes every time) and name it."""
    demo = embedded.DEMO
    data = write_hospital_data(
        folder / "data",
        HOSPITALS[: demo.hospitals],
        rows_per_hospital=demo.rows_per_hospital,
        own_share=demo.own_share,
        held_out_rows=demo.held_out_rows,
    )
    sites = {
        name: LocalSite(
            data=DataSettings(train=(train.resolve(),), heldout=(data.held_out.resolve(),)),
            device="cpu",
        )
        for name, train in data.train.items()
    }
    return FederationSettings(sites=sites)


def write_demo_study(folder: Path) -> tuple[Path, StudySettings]:
    """Write the demo's `study.toml` below `folder`, as an example to change and run again."""
    study = demo_study(MODEL)
    path = folder / "demo-study.toml"
    tree = study.model_dump(mode="json", exclude_defaults=True)
    write_atomic(path, tomli_w.dumps(tree).encode())
    return path, study
