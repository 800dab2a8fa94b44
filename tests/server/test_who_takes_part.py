"""Who is asked in a round, how much of each, and who is not waited for."""

from collections.abc import Callable
from typing import Any

from protocol.envelope import Envelope
from protocol.events import RoundFinished, RoundStarted, SiteResult
from protocol.messages import Request, Task, Timing
from protocol.states import SiteOutcome, StudyState
from server.folder import StudyFolder

Study = Callable[..., StudyFolder]


def of(folder: StudyFolder, kind: type[Any]) -> list[Any]:
    """The events of one kind."""
    return [event for event in folder.events if isinstance(event, kind)]


def finished(folder: StudyFolder) -> bool:
    """Whether the study reached its end."""
    return folder.verdict is not None and folder.verdict.state is StudyState.FINISHED


def test_a_share_of_the_hospitals_is_asked(study: Study) -> None:
    """Half of three is two a round, drawn anew each time; all of them get their turn."""
    folder = study(
        rounds={"count": 8, "deadline_seconds": 600}, aggregation={"sample_fraction": 0.5}
    )
    assert finished(folder)
    asked = [set(event.sites) for event in of(folder, RoundStarted)]
    assert {len(sites) for sites in asked} == {2}
    assert set().union(*asked) == {"hospital-a", "hospital-b", "hospital-c"}
    assert len({frozenset(sites) for sites in asked}) > 1
    assert {event.sites_ok for event in of(folder, RoundFinished)} == {2}


def test_a_resumed_round_asks_the_same_hospitals(study: Study) -> None:
    """The draw depends on the study's seed and the round, so a kill does not change it."""
    asked = {"rounds": {"count": 6, "deadline_seconds": 600}}
    aggregation = {"sample_fraction": 0.5}
    first = study("trial-1", aggregation=aggregation, **asked)
    second = study("trial-2", aggregation=aggregation, **asked)
    draws = [[event.sites for event in of(one, RoundStarted)] for one in (first, second)]
    assert draws[0] == draws[1]


def test_with_one_more_than_needed_nobody_waits_for_the_slowest(
    study: Study, hospitals: dict[str, Any]
) -> None:
    """Three are asked where two are needed: the round ends with two, and the third is late."""
    hospitals["hospital-b"].delay = 300.0
    folder = study(aggregation={"sample_fraction": 0.5, "oversample": 0.5})
    assert finished(folder)
    assert all(event.seconds < 300 for event in of(folder, RoundFinished))
    outcomes = {(event.site, event.outcome) for event in of(folder, SiteResult) if event.round == 1}
    assert outcomes == {
        ("hospital-a", SiteOutcome.OK),
        ("hospital-b", SiteOutcome.LATE),
        ("hospital-c", SiteOutcome.OK),
    }


def slow(hospital: Any, seconds_a_step: float) -> None:
    """Let a hospital take its time over every step."""

    def behave(request: Request, sent: Envelope) -> Any:
        seconds = request.steps * seconds_a_step if request.task is Task.TRAIN else 0.0
        return hospital.truth(request, sent, timing=Timing(train=seconds, total=seconds))

    hospital.behave = behave


def test_a_slow_hospital_is_asked_for_fewer_steps(study: Study, hospitals: dict[str, Any]) -> None:
    """At half the speed, half the steps from round 2 on, and half the weight; a very slow one
    keeps its least share."""
    for name, pace in (("hospital-a", 1.0), ("hospital-b", 2.0), ("hospital-c", 50.0)):
        hospitals[name].rows = 10_000
        slow(hospitals[name], pace)
    folder = study(
        rounds={"count": 3, "deadline_seconds": 600, "balance": "steps", "balance_floor": 0.2},
        training={"steps": 10, "batch_size": 4},
    )
    assert finished(folder)
    steps = {
        (request.round, name): request.steps
        for name, hospital in hospitals.items()
        for request in hospital.seen
        if request.task is Task.TRAIN
    }
    assert [steps[1, name] for name in sorted(hospitals)] == [10, 10, 10]
    for number in (2, 3):
        assert [steps[number, name] for name in sorted(hospitals)] == [10, 5, 2]
    weights = {e.site: e.weight for e in of(folder, SiteResult) if e.round == 3}
    assert weights == {"hospital-a": 40.0, "hospital-b": 20.0, "hospital-c": 8.0}


def test_a_claim_of_more_steps_than_asked_is_refused(
    study: Study, hospitals: dict[str, Any]
) -> None:
    """FedNova divides by the steps, so a hospital cannot make them up."""
    liar = hospitals["hospital-c"]

    def behave(request: Request, sent: Envelope) -> Any:
        answer = liar.truth(request, sent)
        if request.task is not Task.TRAIN:
            return answer
        training = answer_training(request) | {"steps": request.steps + 1}
        return liar.truth(request, sent, training=training)

    liar.behave = behave
    folder = study(aggregation={"normalise_steps": True})
    assert finished(folder)
    outcomes = {e.outcome for e in of(folder, SiteResult) if e.site == "hospital-c"}
    assert outcomes == {SiteOutcome.REFUSED}


def answer_training(request: Request) -> dict[str, Any]:
    """Plausible numbers for a round's work."""
    return {
        "examples": 1, "steps": request.steps, "tokens": 1, "loss_first": 1.0, "loss_last": 1.0,
        "loss_mean": 1.0, "update_norm": 1.0, "epoch": 1.0,
    }  # fmt: skip
