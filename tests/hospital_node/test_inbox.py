"""Which requests become work, and what happens to one that comes twice."""

import uuid
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hospital_node.trainer.errors import Refusal
from hospital_node.trainer.inbox import Inbox, Job, refusal
from protocol.envelope import Envelope, seal
from protocol.manifest import AdapterManifest, TensorSpec
from protocol.messages import Request, Task
from protocol.states import Reason

from .lab import SiteFolder, request, study, with_adapter

MANIFEST = AdapterManifest(tensors=(TensorSpec(name="w", shape=(4,)),))
STUDY = study()


class Lab:
    """An inbox with its coordinator."""

    def __init__(self, site: SiteFolder, *, extra: str = "", history: Any = ()) -> None:
        self.site = site
        self.inbox = Inbox(site.settings(extra=extra), site.coordinator.public_key(), history)

    def sealed(self, task: Task = Task.PREPARE, **changes: Any) -> Envelope:
        """A signed request; to train and evaluate with an adapter beside it."""
        asked, data = request(task, changes.pop("settings", STUDY), **changes), b""
        if task in {Task.TRAIN, Task.EVALUATE}:
            import numpy as np

            asked, data = with_adapter(asked, MANIFEST, np.ones(4, np.float32))
        return seal(asked, data, self.site.coordinator, context="request")

    def admit(self, task: Task = Task.PREPARE, **changes: Any) -> Job:
        return self.inbox.admit(self.sealed(task, **changes))

    def refuses(self, reason: Reason, task: Task = Task.PREPARE, **changes: Any) -> None:
        with pytest.raises(Refusal) as caught:
            self.admit(task, **changes)
        assert caught.value.reason is reason
        assert self.inbox.queue.empty()

    def finish(self, job: Job, *, done: bool = True) -> None:
        """The worker's part."""
        job.done = done
        job.future.set_result(Envelope(b"h", b"s", b"p"))
        self.inbox.finished(job)


@pytest.fixture
def lab(site: SiteFolder) -> Lab:
    """A fresh inbox."""
    return Lab(site)


def test_a_good_request_is_queued(lab: Lab) -> None:
    """Signed by the coordinator, for this site: it becomes a job."""
    job = lab.admit(Task.TRAIN)
    assert lab.inbox.queue.get_nowait() is job
    assert job.payload


def test_another_key_is_refused(lab: Lab) -> None:
    """Nobody but the coordinator can ask, and its signature covers every byte of the header."""
    asked = request(Task.PREPARE, STUDY)
    forged = seal(asked, b"", Ed25519PrivateKey.generate(), context="request")
    good = lab.sealed()
    altered = Envelope(good.header.replace(b'"north"', b'"north" '), good.signature)
    reply_context = seal(asked, b"", lab.site.coordinator, context="reply")
    for envelope in (forged, altered, reply_context, Envelope(good.header, b"")):
        with pytest.raises(Refusal) as caught:
            lab.inbox.admit(envelope)
        assert caught.value.reason is Reason.BAD_SIGNATURE


def test_a_payload_that_is_not_the_signed_one_is_refused(lab: Lab) -> None:
    """The header names the payload's digest, so a link cannot swap adapters."""
    good = lab.sealed(Task.TRAIN)
    flipped = good.payload[:-1] + bytes([good.payload[-1] ^ 1])
    for payload in (flipped, b"", good.payload + b"x"):
        with pytest.raises(Refusal) as caught:
            lab.inbox.admit(Envelope(good.header, good.signature, payload))
        assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("reason", "task", "changes"),
    [
        (Reason.WRONG_SITE, Task.PREPARE, {"site": "south"}),
        (Reason.WRONG_SITE, Task.PREPARE, {"settings": study(sites=["south", "west"])}),
        (Reason.WRONG_STUDY, Task.PREPARE, {"study_id": "other-1"}),
        (Reason.WRONG_STUDY, Task.PREPARE, {"study_id": "trialist-1"}),
        (Reason.WRONG_ROUND, Task.PREPARE, {"round": 1}),
        (Reason.WRONG_ROUND, Task.TRAIN, {"round": 0}),
        (Reason.WRONG_ROUND, Task.TRAIN, {"round": 5}),
        (Reason.MALFORMED, Task.TRAIN, {"steps": 0}),
    ],
)
def test_what_is_not_for_this_site_is_refused(
    lab: Lab, reason: Reason, task: Task, changes: dict[str, Any]
) -> None:
    """A signed request that does not fit gets the reason that says why."""
    lab.refuses(reason, task, **changes)


def test_signed_nonsense_is_malformed(lab: Lab) -> None:
    """Extra fields, a missing adapter or another version are refused, signature or not."""
    for text in (b"{}", b"[]", b'{"request_id": 1}', b"\xff"):
        signature = lab.site.coordinator.sign(b"fedward-v1-request\0" + text)
        with pytest.raises(Refusal) as caught:
            lab.inbox.admit(Envelope(text, signature))
        assert caught.value.reason is Reason.MALFORMED
    bare = request(Task.TRAIN, STUDY)
    with pytest.raises(Refusal) as caught:
        lab.inbox.admit(seal(bare, b"", lab.site.coordinator, context="request"))
    assert caught.value.reason is Reason.MALFORMED


def test_a_study_the_site_takes_no_part_in(site: SiteFolder) -> None:
    """limits.studies names studies; another is forbidden, whoever signed it."""
    lab = Lab(site, extra='[limits]\nstudies = ["other"]')
    lab.refuses(Reason.SITE_FORBIDS)
    lab.admit(settings=study(name="other"))


def test_the_same_request_again_joins_its_work(lab: Lab) -> None:
    """A re-send while the work is under way, or after it, gets the same answer and no new work."""
    envelope = lab.sealed(Task.TRAIN)
    job = lab.inbox.admit(envelope)
    assert lab.inbox.admit(envelope) is job
    lab.finish(job)
    assert lab.inbox.admit(envelope) is job
    assert job.payload == b"", "the adapter that came is let go of"
    lab.inbox.queue.get_nowait()
    assert lab.inbox.queue.empty()


def test_a_failure_is_tried_again(lab: Lab) -> None:
    """Whoever asks again after a failure gets a new try, not the old answer."""
    envelope = lab.sealed()
    job = lab.inbox.admit(envelope)
    lab.finish(job, done=False)
    assert lab.inbox.admit(envelope) is not job


def test_another_request_under_the_same_id_is_a_replay(lab: Lab) -> None:
    """An id stands for one signed request."""
    number = uuid.uuid4().hex
    lab.admit(request_id=number)
    with pytest.raises(Refusal) as caught:
        lab.admit(request_id=number, evaluate=False)
    assert caught.value.reason is Reason.REPLAYED


def test_rounds_do_not_go_back(lab: Lab) -> None:
    """An old round cannot be replayed; the newest can be asked again by a resumed aggregator."""
    lab.finish(lab.admit(Task.TRAIN, round=1))
    lab.finish(lab.admit(Task.TRAIN, round=3))
    with pytest.raises(Refusal, match="round 2 of trial-1 was asked after round 3") as caught:
        lab.admit(Task.TRAIN, round=2)
    assert caught.value.reason is Reason.WRONG_ROUND
    lab.admit(Task.TRAIN, round=3)
    lab.admit(Task.TRAIN, round=1, study_id="trial-2")


def test_a_restarted_trainer_remembers_from_the_ledger(site: SiteFolder) -> None:
    """Rounds and request ids of the ledger hold after a restart; the work can be redone."""
    number = uuid.uuid4().hex
    first = Lab(site)
    envelope = first.sealed(Task.TRAIN, round=3, request_id=number)
    job = first.inbox.admit(envelope)
    entry = {"kind": "reply", "request_id": number, "request_digest": job.digest,
             "study": "trial-1", "round": 3, "task": "train"}  # fmt: skip
    lab = Lab(site, history=[{"kind": "counted"}, entry])
    with pytest.raises(Refusal) as caught:
        lab.admit(Task.TRAIN, round=2)
    assert caught.value.reason is Reason.WRONG_ROUND
    with pytest.raises(Refusal) as caught:
        lab.admit(Task.TRAIN, round=3, request_id=number, steps=1)
    assert caught.value.reason is Reason.REPLAYED
    assert lab.inbox.admit(envelope).request == job.request


def test_a_newer_round_stops_the_older(lab: Lab) -> None:
    """The aggregator has given up on a round when it asks for the next; other work goes on."""
    old = lab.admit(Task.TRAIN, round=1)
    other = lab.admit(Task.TRAIN, round=1, study_id="trial-2")
    prepare = lab.admit(Task.PREPARE)
    lab.admit(Task.EVALUATE)
    assert not old.cancel.is_set()
    lab.admit(Task.TRAIN, round=2)
    assert old.cancel.is_set()
    assert not other.cancel.is_set()
    assert not prepare.cancel.is_set()


def test_a_refusal_names_what_it_refuses_and_no_more(site: SiteFolder) -> None:
    """What could be read of the request is named; of what could not, nothing is repeated."""
    lab = Lab(site)
    asked = Request.model_validate_json(lab.sealed(Task.PREPARE).header)
    answer = refusal(Envelope(asked.model_dump_json().encode(), b""), "north", Reason.BAD_SIGNATURE)
    assert (answer.request_id, answer.reason) == (asked.request_id, Reason.BAD_SIGNATURE)
    unreadable = refusal(Envelope(b'{"Jane": "Roe"}', b""), "north", Reason.MALFORMED)
    assert "Jane" not in unreadable.model_dump_json()
