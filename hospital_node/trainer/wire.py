"""Between a request's payload and the model, and between the model and the update that leaves.

    down   decode, or add the change to the adapter held since the last round;  adapter [, c]
    up     change of the part that trains, plus what encodings lost [, c_k+ - c_k]

See `protocol.layout` for what is in a payload, and `memory` for what stays here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hospital_node.outbound import Update
from protocol.codec import (
    ErrorFeedback,
    decode_payload,
    follow,
    join_control,
    narrow,
    of_rank,
    split_control,
    widen,
)
from protocol.errors import ProtocolError
from protocol.layout import delta_layout, down_layout, up_layout
from protocol.manifest import AdapterManifest
from protocol.messages import Request, Task
from protocol.states import Reason

from .adapter import Adapter, Vector, tensors_of
from .errors import Refusal
from .memory import Memory


@dataclass(frozen=True)
class Received:
    """What came: the site's adapter (float32 [n]) and what is beside it.

    `control` is SCAFFOLD's c (float32 [n]); `merges` are changes of the base, laid out behind
    the adapter as `with_merges` says.
    """

    adapter: Vector
    control: Vector | None = None
    merges: Vector | None = None


class Wire:
    """One site's payloads, with what it remembers for them in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._feedback = Memory(folder / "feedback")
        self._controls = Memory(folder / "control", lasting=True)
        self._held = Memory(folder / "held")

    def receive(self, request: Request, payload: bytes, adapter: Adapter) -> Received:
        """Read a request's payload for `adapter`, which is on this site's model.

        Raises:
            Refusal: it is laid out for something else, or is the change of an adapter that is not
                here.
            ProtocolError: it is not what its header says.
        """
        settings, mine = request.settings, adapter.manifest
        whole = mine if request.rank is None else of_rank(mine, settings.adapter.rank)
        if request.payload is None:
            raise Refusal(Reason.MALFORMED, f"a {request.task} request without an adapter")
        if request.manifest_digest != whole.digest:
            raise Refusal(
                Reason.WRONG_MANIFEST, "the adapter that came is laid out for another base model"
            )
        merge_rank = request.merges.rank if request.merges else 0
        layout = down_layout(settings, whole, request.rank, merge_rank)
        if request.payload.numel != layout.numel:
            raise Refusal(
                Reason.WRONG_SHAPE,
                f"{request.payload.numel} values came, this adapter needs {layout.numel}",
            )
        vector = self._decode(request, payload, layout, adapter)
        if settings.codec.chained and request.task is Task.TRAIN and request.rank is None:
            self._held.keep(request.study_id, request.round, layout, vector)
        end = down_layout(settings, whole, request.rank).numel
        vector, merges = vector[:end], vector[end:] if request.merges else None
        if settings.aggregation.strategy == "scaffold":
            values, control = split_control(vector)
            return Received(values, control, merges)
        return Received(vector, None, merges)

    def correction(self, request: Request, received: Received, mine: AdapterManifest) -> Vector:
        """SCAFFOLD's c - c_k (float32 [n]), which is added to every gradient."""
        assert received.control is not None
        return received.control - self._control(request, mine)

    def update(
        self,
        request: Request,
        delta: Vector,
        gradient: Vector | None,
        mine: AdapterManifest,
        *,
        max_norm: float,
    ) -> Update:
        """What leaves: `delta` is the adapter's change and `gradient` the mean raw gradient of the
        round (SCAFFOLD's c_k+), both float32 [n] and laid out by `mine`."""
        settings, round_number = request.settings, request.round
        part = delta_layout(settings, mine, round_number)
        wanted = delta if part == mine else narrow(delta, mine, part)
        after: Callable[[Vector], None] | None = None
        if settings.codec.feedback:
            wanted, after = self._with_feedback(request, wanted, part)
        layout = up_layout(settings, mine, round_number)
        if gradient is not None:
            old = self._control(request, mine)
            change = narrow(gradient - old, mine, part)
            wanted = join_control(wanted, change)

            def keep(sent: Vector) -> None:
                # What the aggregator adds to its c is what was decoded, so that is added here too.
                new = old.copy()
                new += widen(split_control(sent)[1], part, mine)
                self._controls.keep(request.study_id, round_number, mine, new)

            after = keep
        return Update(
            "delta",
            tensors_of(wanted, layout),
            layout,
            settings.codec.up,
            max_norm=max_norm,
            after=after,
        )

    def _with_feedback(
        self, request: Request, delta: Vector, part: AdapterManifest
    ) -> tuple[Vector, Callable[[Vector], None]]:
        study, number = request.study_id, request.round
        wanted = ErrorFeedback(self._feedback.before(study, number, part)).add_to(delta)

        def after(sent: Vector) -> None:
            self._feedback.keep(study, number, part, wanted - sent)

        return wanted, after

    def _control(self, request: Request, mine: AdapterManifest) -> Vector:
        return self._controls.before(request.study_id, request.round, mine)

    def _decode(
        self, request: Request, payload: bytes, layout: AdapterManifest, adapter: Adapter
    ) -> Vector:
        assert request.payload is not None
        if request.change_of is None:
            return decode_payload(request.payload, payload, layout, kind="adapter")
        held = self._held.find(request.study_id, request.change_of, layout)
        if held is None and request.round == 1:
            # The first adapter need not be sent: it is drawn from the study's seed, here as there.
            held = adapter.initial(request.settings.seed)
            if layout.numel > held.size:
                held = join_control(held, np.zeros_like(held))
        change = decode_payload(request.payload, payload, layout, kind="delta")
        try:
            return follow(held, request.change_of, change)
        except ProtocolError as error:
            raise Refusal(Reason.NOT_HELD, str(error)) from error
