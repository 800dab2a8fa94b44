"""Forged answers through the real SuperLink and real links: refused before they are added up.

What lies between a trainer and the aggregation (link, network, edge, SuperLink and its host) can
change bytes, keep them and swap them. Here it does, one way in each round.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from test_federation import Federation, running

from protocol.envelope import Envelope
from protocol.events import RoundFinished, SiteResult
from protocol.messages import Request, Task
from protocol.states import Reason, SiteOutcome, StudyState

__all__ = ["running"]  # the fixture: an aggregator, two links, stand-in trainers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

Forgery = Callable[[Envelope], Envelope]


def altered(true: Envelope) -> Envelope:
    """Other bytes, and a header that names them: only the signature is in the way."""
    payload = bytes(reversed(true.payload))
    header = json.loads(true.header)
    header["payload"]["digest"] = hashlib.sha256(payload).hexdigest()
    return Envelope(json.dumps(header).encode(), true.signature, payload)


def swapped(true: Envelope) -> Envelope:
    """Other bytes in the payload under the true header."""
    return Envelope(true.header, true.signature, bytes(reversed(true.payload)))


def unsigned(true: Envelope) -> Envelope:
    """No signature at all."""
    return Envelope(true.header, b"", true.payload)


def test_what_the_superlinks_host_does_to_an_answer_is_seen(running: Federation) -> None:
    """Altered, swapped, unsigned, signed by another site, replayed: each refused and counted."""
    first, second = (trainer.hospital for trainer in running.trainers)
    true_answer, kept = second.truth, []

    def forge(request: Request, sent: Envelope) -> Any:
        if request.task is not Task.TRAIN:
            return true_answer(request, sent)
        if request.round == 4:  # the other hospital's key over this hospital's words
            second.key, own = first.key, second.key
            try:
                return true_answer(request, sent)
            finally:
                second.key = own
        if request.round == 5:
            return kept[0]
        kept.append(true_answer(request, sent))
        ways: dict[int, Forgery] = {1: altered, 2: swapped, 3: unsigned}
        return ways[request.round](kept[-1])

    second.truth = forge
    running.submit("forged-1", count=5, minimum_sites=1, join_seconds=60)
    end = running.end_of("forged-1")
    assert end.state is StudyState.FINISHED, running.logs()
    results = [e for e in running.events("forged-1", SiteResult) if e.site == second.name]
    assert [(e.round, e.outcome, e.reason) for e in results] == [
        (1, SiteOutcome.REFUSED, Reason.BAD_SIGNATURE),
        (2, SiteOutcome.REFUSED, Reason.MALFORMED),
        (3, SiteOutcome.REFUSED, Reason.BAD_SIGNATURE),
        (4, SiteOutcome.REFUSED, Reason.BAD_SIGNATURE),
        (5, SiteOutcome.REFUSED, Reason.REPLAYED),
    ]
    rounds = running.events("forged-1", RoundFinished)
    assert [event.sites_ok for event in rounds] == [1] * 5
