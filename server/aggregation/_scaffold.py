"""SCAFFOLD: control variates against client drift (Karimireddy et al., arXiv 1910.06378).

The server holds c and each site its own c_k, both float32 [n] in units of a gradient, zero at
first. What crosses the wire, in both directions, is twice the adapter:

    down   adapter, then c            join_control(adapter, state.vector("c", n))
    up     Δ_k, then c_k⁺ - c_k       split_control: Update.delta, Update.control

(`protocol.codec`; both payloads have the layout `with_control(manifest)`.)

What a trainer does in a round, step by step:

1. After `loss.backward()`, with g the raw gradient: add g to a running sum, then put
   g - c_k + c in its place, *before* gradient clipping and before the optimizer.
2. After the last of its T steps: c_k⁺ = (sum of the raw g) / T; answer with Δ_k and c_k⁺ - c_k,
   and keep c_k⁺ on disk once the answer is out.

Step 1 is what makes it right for AdamW: the correction passes through the moments as the gradient
does. Moving the weights by -η (c - c_k) after the step, as others do, adds a plain-SGD correction
to a preconditioned step, at a scale that has nothing to do with it. And the mean raw gradient is
the paper's option II without its assumption: under plain SGD (x - y_k) / (T η) is the mean of
g - c_k + c, so c_k - c + (x - y_k) / (T η) is the mean of g exactly; under AdamW that difference
is no gradient at all, while the mean of g still is.

The server's half (the paper's algorithm 1, lines 16 and 17; N sites in the study, S answered):

    x = x + η_g Σ p_k Δ_k        c = c + (|S| / N) mean_S(c_k⁺ - c_k)

A site that lost its c_k begins again with zero; c is then off by its old share over N, which its
later rounds do not mend, so the study's first rounds are the cheap ones to lose it in.
"""

import numpy as np

from protocol.errors import ProtocolError
from protocol.manifest import AdapterManifest
from protocol.study import AggregationSettings

from ._mean import Mean, accumulate
from ._optimizers import step
from ._state import ServerState
from ._types import Aggregate, Sum, Update, Vector, l2_norm

CONTROL = "c"


class Scaffold:
    """The server's half; memory is 16 bytes a parameter, however many sites."""

    def __init__(
        self,
        settings: AggregationSettings,
        manifest: AdapterManifest,
        reference: Vector,
        state: ServerState,
        *,
        total_sites: int,
    ) -> None:
        self._settings = settings
        self._mean = Mean(manifest, by_step=settings.normalise_steps)
        self._reference = reference
        self._state = state
        self._total_sites = total_sites
        self._controls: Sum = np.zeros(manifest.numel, np.float64)

    def add(self, update: Update) -> None:
        """See `Aggregator`; also refuses an update without a control variate."""
        if update.control is None:
            raise ProtocolError(f"{update.site}: SCAFFOLD needs the change of the control variate")
        control = self._mean.intake.full(update.control, update, "control variate")
        self._mean.add(update)
        accumulate(self._controls, control, 1.0)

    def finish(self) -> Aggregate:
        """See `Aggregator`; `info["control_norm"]` is the L2 norm of c."""
        adapter, _ = self._mean.combine()  # the mean change; step makes it the adapter
        intake = self._mean.intake
        step(self._settings, self._reference, adapter, ServerState())
        total = max(self._total_sites, len(intake.sites))
        old = self._state.vector(CONTROL, adapter.size)
        control = (old + self._controls / total).astype(np.float32)
        info = intake.info() | {
            "update_norm": l2_norm(adapter, self._reference),
            "control_norm": l2_norm(control),
        }
        return Aggregate(adapter, info, ServerState(self._settings.strategy, {CONTROL: control}))
