"""The model and the data of the demo, so that it needs no download.

    corpus     an invented medicine, as training files per hospital and one held-out file
    tokenizer  its words as tokens, and any other text through bytes
    model      the shipped base model, and how to make it again
    trial      base, each hospital alone and the federation, in one process

Held-out accuracy with `DEMO`, multiple choice / free answer, as printed by
`python -m fedward.embedded.trial --seeds 0 1 2`. Each kind has 120 items, so an accuracy near one
half has a standard error of 4.6 points; guessing gives 25 / 17 %, because the base model knows
which six drugs or tests belong to a specialty. Alone means the same number of steps on one
hospital's rows.

    seed   base          alone, each of the three hospitals     federated
    0      20.0 / 15.8   43.3 / 42.5   61.7 / 61.7   56.7 / 55.0    93.3 /  86.7
    1      23.3 / 19.2   64.2 / 60.8   46.7 / 37.5   59.2 / 55.0   100.0 / 100.0
    2      24.2 / 14.2   51.7 / 45.0   55.0 / 45.0   55.8 / 48.3    90.0 /  78.3

The final settings were chosen by looking at seeds 0 and 1, and run once on seed 2 (which earlier,
other settings had been tried on too). Training the federation took 39 to 49 CPU seconds, the three
lone hospitals 45 to 51, one evaluation 1.1 to 1.4, on one thread of a 2-core machine that was busy
with other work.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class DemoSettings:
    """Everything that decides what the demo federation learns and what it costs."""

    hospitals: int = 3
    rounds: int = 8
    steps: int = 20
    """Optimizer steps of each hospital in each round."""
    batch_size: int = 16
    """Rows per step."""
    learning_rate: float = 3e-3
    """AdamW, constant, a fresh optimizer in every round."""
    rank: int = 16
    alpha: int = 16
    target_modules: str = "all-linear"
    """As PEFT spells it: every Linear layer but the output."""
    rows_per_hospital: int = 800
    own_share: float = 0.96
    """Share of a hospital's rows that are of its own specialty."""
    held_out_rows: int = 240


DEMO: Final = DemoSettings()
