"""How the sites' updates become the next adapter.

    aggregator = make_aggregator(settings, manifest, reference, round_number=3, state=state)
    for update in arriving:
        aggregator.add(update)          # streaming: the update may be freed afterwards
    aggregate = aggregator.finish()     # the adapter, numbers about it, and the next state

Nothing is changed in place: a round that fails leaves `reference` and `state` as they were.
"""

from ._factory import make_aggregator
from ._state import ServerState
from ._types import Aggregate, AggregationError, Aggregator, Update

__all__ = [
    "Aggregate",
    "AggregationError",
    "Aggregator",
    "ServerState",
    "Update",
    "make_aggregator",
]
