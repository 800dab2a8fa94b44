"""The model and the data of the demo, so that it needs no download."""

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
    rank: int = 16
    alpha: int = 16
    target_modules: str = "all-linear"
    rows_per_hospital: int = 800
    own_share: float = 0.96
    """Share of a hospital's rows that are of its own specialty."""
    held_out_rows: int = 240


DEMO: Final = DemoSettings()
