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
from .federation import FederationSettings, LocalSite

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
    """Write the hospitals' data below `folder` if it is not there; name it."""
    data = folder / "data"
    heldout = data / "heldout.jsonl"
    if not heldout.exists():
        embedded.write_hospital_data(data, HOSPITALS)
    sites = {
        name: LocalSite(
            data=DataSettings(train=(data / name / "train.jsonl",), heldout=(heldout,)),
            device="cpu",
        )
        for name in HOSPITALS
    }
    return FederationSettings(sites=sites)


def write_demo_study(folder: Path) -> tuple[Path, StudySettings]:
    """Write the demo's `study.toml` below `folder`, as an example to change and run again."""
    study = demo_study(embedded.model_folder())
    path = folder / "demo-study.toml"
    tree = study.model_dump(mode="json", exclude_defaults=True)
    write_atomic(path, tomli_w.dumps(tree).encode())
    return path, study
