"""Whole studies over hospitals in memory: what counts, what is refused, what survives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict

from protocol.envelope import Envelope
from protocol.events import (
    LoneEvaluated,
    RoundFinished,
    SitePrepared,
    SiteResult,
    StudyEvaluated,
    StudyStarted,
)
from protocol.flower_records import pack
from protocol.messages import Request, Task
from protocol.states import Reason, SiteOutcome, StudyState
from server.checkpoint import load_latest
from server.folder import StudyFolder

Study = Callable[..., StudyFolder]
Answer = Callable[[Any, Request, Envelope], Any]


def results(folder: StudyFolder, site: str) -> list[tuple[int, SiteOutcome, Reason | None]]:
    """Outcome and reason of each round at one hospital."""
    return [
        (event.round, event.outcome, event.reason)
        for event in of(folder, SiteResult)
        if event.site == site
    ]


def of(folder: StudyFolder, kind: type[Any]) -> list[Any]:
    """The events of one kind."""
    return [event for event in folder.events if isinstance(event, kind)]


def state_of(folder: StudyFolder) -> StudyState:
    """The study's own verdict."""
    verdict = folder.verdict
    assert verdict is not None
    return verdict.state


def in_round(hospital: Any, number: int, answer: Answer, task: Task = Task.TRAIN) -> None:
    """Have a hospital answer so in one round, and truthfully otherwise."""

    def behave(request: Request, sent: Envelope) -> Any:
        if request.task is task and request.round == number:
            return answer(hospital, request, sent)
        return hospital.truth(request, sent)

    hospital.behave = behave


def test_three_hospitals_learn(study: Study, hospitals: dict[str, Any]) -> None:
    """Three truthful hospitals: every round is aggregated and the adapter comes out as PEFT's."""
    folder = study(evaluation={"lone_baseline": True})
    verdict = folder.verdict
    assert verdict is not None
    assert verdict.state is StudyState.FINISHED, verdict
    assert "3 rounds, 3 of them aggregated" in verdict.verdict
    assert [event.sites_ok for event in of(folder, RoundFinished)] == [3, 3, 3]
    assert len(of(folder, LoneEvaluated)) == 3
    before, after = of(folder, SitePrepared)[0].evaluation, of(folder, StudyEvaluated)[0].evaluation
    assert after.loss < before.loss
    assert (folder.path / "adapter" / "adapter_model.safetensors").exists()
    assert [event.seq for event in folder.events] == list(range(1, len(folder.events) + 1))
    mean = np.mean([hospital.target for hospital in hospitals.values()], axis=0)
    checkpoint = load_latest(folder.path)
    assert checkpoint is not None
    np.testing.assert_allclose(checkpoint.adapter, mean * (1 - 0.5**3), rtol=1e-4)


def test_one_payload_object_for_all(study: Study, grid: Any) -> None:
    """The adapter is one object that all hospitals' messages share."""
    study(rounds={"count": 1})
    trains = [message for message in grid.pushed if "payload" in message.content][:3]
    assert len({message.content["payload"].object_id for message in trains}) == 1


BAD: dict[str, tuple[Reason, Answer]] = {
    "a NaN": (
        Reason.NOT_FINITE,
        lambda h, r, e: h.truth(r, e, tamper=lambda d: d[:-4] + np.float32("nan").tobytes()),
    ),
    "a huge change": (
        Reason.NORM_TOO_LARGE,
        lambda h, r, e: h.truth(r, e, delta=np.full(48, 1e6)),
    ),
    "bytes that are no encoding": (
        Reason.MALFORMED,
        lambda h, r, e: h.truth(r, e, tamper=lambda d: b"xxxx" + d[4:]),
    ),
    "another study's reply": (
        Reason.WRONG_STUDY,
        lambda h, r, e: h.truth(r, e, study_id="other-1"),
    ),
    "a reply to another round": (Reason.WRONG_ROUND, lambda h, r, e: h.truth(r, e, round=7)),
    "no signature": (
        Reason.BAD_SIGNATURE,
        lambda h, r, e: Envelope(h.truth(r, e).header, b"", h.truth(r, e).payload),
    ),
    "another payload than the signed one": (
        Reason.MALFORMED,
        lambda h, r, e: Envelope(h.truth(r, e).header, h.truth(r, e).signature, b"x"),
    ),
    "no envelope": (Reason.MALFORMED, lambda h, r, e: RecordDict()),
    "an extra record": (
        Reason.MALFORMED,
        lambda h, r, e: RecordDict(
            dict(pack(h.truth(r, e))) | {"patients": ConfigRecord({"name": "x"})}
        ),
    ),
    "two arrays": (
        Reason.MALFORMED,
        lambda h, r, e: RecordDict(
            {
                "fedward": pack(h.truth(r, e))["fedward"],
                "payload": ArrayRecord({"a": Array(np.zeros(2)), "b": Array(np.zeros(2))}),
            }
        ),
    ),
    "out of memory": (Reason.OUT_OF_MEMORY, lambda h, r, e: h.refusal(r, Reason.OUT_OF_MEMORY)),
    "a link that will not": (
        Reason.SITE_FORBIDS,
        lambda h, r, e: Error(2, "<class 'X'>:<'fedward:site_forbids'>"),
    ),
    "an exception's text": (Reason.LINK_ERROR, lambda h, r, e: Error(2, "patient 4711 has flu")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_answer_costs_one_place(study: Study, hospitals: dict[str, Any], case: str) -> None:
    """A bad answer is refused with its reason; the round and the study go on without it."""
    reason, answer = BAD[case]
    in_round(hospitals["hospital-b"], 2, answer)
    folder = study()
    assert state_of(folder) is StudyState.FINISHED
    assert [event.sites_ok for event in of(folder, RoundFinished)] == [3, 2, 3]
    (_, outcome, said) = results(folder, "hospital-b")[1]
    assert said is reason
    assert outcome in {SiteOutcome.REFUSED, SiteOutcome.FAILED}
    assert "4711" not in (folder.path / "events.jsonl").read_text()


def test_replayed_reply_is_refused(study: Study, hospitals: dict[str, Any]) -> None:
    """Last round's reply, properly signed, does not count in this one."""
    kept: list[Envelope] = []
    hospital = hospitals["hospital-c"]

    def behave(request: Request, sent: Envelope) -> Envelope:
        if request.task is Task.TRAIN:
            kept.append(hospital.truth(request, sent))
            return kept[0]
        reply: Envelope = hospital.truth(request, sent)
        return reply

    hospital.behave = behave
    folder = study(rounds={"count": 2})
    assert results(folder, "hospital-c") == [
        (1, SiteOutcome.OK, None),
        (2, SiteOutcome.REFUSED, Reason.REPLAYED),
    ]


def test_another_hospital_cannot_answer_in_its_name(
    study: Study, grid: Any, hospitals: dict[str, Any]
) -> None:
    """A reply that another node slipped in is refused, and the true one is asked for and counts."""
    hospital, other = hospitals["hospital-a"], hospitals["hospital-b"]
    calls = 0

    def behave(request: Request, sent: Envelope) -> Envelope:
        nonlocal calls
        calls += request.task is Task.TRAIN
        if request.task is Task.TRAIN and calls == 1:
            forged: Envelope = other.truth(request, sent, site="hospital-a")
            return forged
        reply: Envelope = hospital.truth(request, sent)
        return reply

    hospital.behave = behave
    folder = study(rounds={"count": 1})
    assert results(folder, "hospital-a") == [(1, SiteOutcome.OK, None)]
    assert of(folder, SiteResult)[-1].resent == 1 or any(e.resent for e in of(folder, SiteResult))


def test_claimed_weight_is_capped(study: Study, hospitals: dict[str, Any]) -> None:
    """A hospital that claims a million rows weighs no more than what it was asked to use."""
    hospital = hospitals["hospital-a"]

    def boast(h: Any, request: Request, sent: Envelope) -> Envelope:
        honest = h.truth(request, sent)
        from protocol.messages import Reply

        training = Reply.model_validate_json(honest.header).training
        assert training is not None
        more = training.model_copy(update={"examples": 1_000_000})
        envelope: Envelope = h.truth(request, sent, training=more)
        return envelope

    hospital.rows = 1_000_000
    in_round(hospital, 1, boast)
    folder = study(rounds={"count": 1}, training={"steps": 5, "batch_size": 8})
    weights = {event.site: event.weight for event in of(folder, SiteResult)}
    assert weights == {"hospital-a": 40.0, "hospital-b": 40.0, "hospital-c": 40.0}


def test_late_answer_does_not_hold_the_round(study: Study, hospitals: dict[str, Any]) -> None:
    """A hospital that needs longer than the deadline is late; the others' round goes on."""
    hospitals["hospital-b"].delay = 0.0
    in_round(hospitals["hospital-b"], 1, lambda h, r, e: None)
    folder = study(rounds={"count": 2, "deadline_seconds": 30})
    assert results(folder, "hospital-b") == [
        (1, SiteOutcome.LATE, Reason.TOO_LATE),
        (2, SiteOutcome.OK, None),
    ]
    assert of(folder, RoundFinished)[0].seconds == pytest.approx(30, abs=3)


def test_too_few_updates_end_the_study(study: Study, hospitals: dict[str, Any]) -> None:
    """Rounds without enough acceptable updates change nothing; three in a row are a verdict."""
    for name in ("hospital-a", "hospital-b"):
        hospital = hospitals[name]

        def behave(request: Request, sent: Envelope, hospital: Any = hospital) -> Any:
            if request.task is Task.TRAIN and request.round > 1:
                return hospital.refusal(request, Reason.OUT_OF_MEMORY)
            return hospital.truth(request, sent)

        hospital.behave = behave
    folder = study(rounds={"count": 10, "failed_rounds": 3})
    assert state_of(folder) is StudyState.FAILED
    assert [event.aggregated for event in of(folder, RoundFinished)] == [True, False, False, False]
    assert folder.verdict is not None
    assert "3 round(s) in a row" in folder.verdict.verdict
    assert "round 1 is kept" in folder.verdict.verdict


def test_missing_hospitals_are_a_verdict(study: Study, hospitals: dict[str, Any]) -> None:
    """Too few hospitals online within join_seconds: the verdict names those that are missing."""
    hospitals["hospital-a"].online = hospitals["hospital-b"].online = False
    folder = study(rounds={"join_seconds": 60})
    assert state_of(folder) is StudyState.FAILED
    assert folder.verdict is not None
    assert "missing: hospital-a, hospital-b" in folder.verdict.verdict


def test_other_base_is_refused(study: Study, hospitals: dict[str, Any]) -> None:
    """A hospital with other base weights, be it the lead, is refused and the others go on."""
    hospitals["hospital-a"].base = "c" * 64
    folder = study()
    assert state_of(folder) is StudyState.FINISHED
    refused = [e for e in of(folder, SitePrepared) if e.outcome is SiteOutcome.REFUSED]
    assert [(e.site, e.reason) for e in refused] == [("hospital-a", Reason.MODEL_MISMATCH)]
    assert [event.sites_ok for event in of(folder, RoundFinished)] == [2, 2, 2]


def test_named_base_must_be_the_one(study: Study) -> None:
    """Where the study names the base's hash and nobody has it, the verdict says so."""
    folder = study(model={"base": "x", "sha256": "e" * 64})
    assert state_of(folder) is StudyState.FAILED
    assert {e.reason for e in of(folder, SitePrepared)} == {Reason.MODEL_MISMATCH}


def test_late_comer_joins_a_later_round(
    study: Study, clock: Any, hospitals: dict[str, Any]
) -> None:
    """A hospital that comes online during round 1 is prepared beside it and trains in the next."""
    hospitals["hospital-c"].online = False

    def come() -> None:
        hospitals["hospital-c"].online = True

    def slow(h: Any, request: Request, sent: Envelope) -> Any:
        come()
        return h.truth(request, sent)

    in_round(hospitals["hospital-a"], 1, slow)
    folder = study()
    assert [event.sites_ok for event in of(folder, RoundFinished)] == [2, 2, 3]


def test_resume_goes_on_after_the_last_round(study: Study, hospitals: dict[str, Any]) -> None:
    """A ServerApp that dies in round 2 costs round 2: its successor arrives at the same adapter."""

    class KilledError(BaseException):
        pass

    def die(h: Any, request: Request, sent: Envelope) -> Any:
        h.behave = None
        raise KilledError

    in_round(hospitals["hospital-b"], 2, die)
    with pytest.raises(KilledError):
        study()
    folder = study()
    assert state_of(folder) is StudyState.FINISHED
    assert [event.from_round for event in of(folder, StudyStarted)] == [0, 1]
    assert [event.round for event in of(folder, RoundFinished)] == [1, 2, 3]
    whole = study("trial-2")
    ours, theirs = load_latest(folder.path), load_latest(whole.path)
    assert ours is not None
    assert theirs is not None
    np.testing.assert_array_equal(ours.adapter, theirs.adapter)


def test_same_work_has_the_same_request_id(study: Study, hospitals: dict[str, Any]) -> None:
    """A round that is repeated after a kill asks with the same ids: trainers answer from memory."""

    class KilledError(BaseException):
        pass

    def die(h: Any, request: Request, sent: Envelope) -> Any:
        h.behave = None
        raise KilledError

    in_round(hospitals["hospital-c"], 2, die)
    with pytest.raises(KilledError):
        study()
    study()
    seen = [r.request_id for r in hospitals["hospital-a"].seen if r.task is Task.TRAIN]
    assert len(seen) == 4
    assert seen[1] == seen[2]
    assert len(set(seen)) == 3


def test_stop_is_orderly(study: Study, hospitals: dict[str, Any], tmp_path: Any) -> None:
    """A person's stop ends the study within a look, with the adapter as far as it got."""

    def stop(h: Any, request: Request, sent: Envelope) -> Any:
        StudyFolder(tmp_path / "state" / "studies" / "trial-1", "trial-1").ask_to_stop()
        return None

    in_round(hospitals["hospital-b"], 2, stop)
    folder = study()
    assert state_of(folder) is StudyState.STOPPED
    assert folder.verdict is not None
    assert folder.verdict.rounds == 1
    assert (folder.path / "adapter" / "adapter_config.json").exists()


def test_full_disk_keeps_the_last_checkpoint(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up at a checkpoint: one sentence, and the checkpoint before it holds."""
    from server import checkpoint as module

    written = 0

    def full(path: Any, data: bytes, **_: Any) -> None:
        nonlocal written
        written += 1
        if written > 2:
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(module, "write_atomic", full)
    folder = study()
    assert state_of(folder) is StudyState.FAILED
    assert folder.verdict is not None
    assert "No space left on device" in folder.verdict.verdict
    assert "free space" in folder.verdict.verdict
    kept = load_latest(folder.path)
    assert kept is not None
    assert kept.round == 1
