"""How the sites' updates become the next adapter.

    aggregator = make_aggregator(settings, manifest, reference, round_number=3, state=state)
    for update in arriving:
        aggregator.add(update)          # streaming: the update may be freed afterwards
    aggregate = aggregator.finish()     # the adapter, numbers about it, and the next state

Nothing is changed in place: a round that fails leaves `reference` and `state` as they were.

In reading order: `_types`, `_mean`, `_optimizers`, `_robust`, `_scaffold`, `_lora`, `_flexlora`,
`_stacking`, `_factory`; and, before a round, `_weights`.
"""

from ._factory import make_aggregator
from ._scaffold import CONTROL
from ._state import ServerState
from ._types import Aggregate, AggregationError, Aggregator, Merge, Update, Vector, l2_norm
from ._weights import Draw, draw_sites, update_weight

__all__ = [
    "CONTROL",
    "Aggregate",
    "AggregationError",
    "Aggregator",
    "Draw",
    "Merge",
    "ServerState",
    "Update",
    "Vector",
    "draw_sites",
    "l2_norm",
    "make_aggregator",
    "update_weight",
]
