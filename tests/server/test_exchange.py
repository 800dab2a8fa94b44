"""The exchange loop alone: lost nodes, restarts, faults that pass, bytes that break a decoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error

from protocol.envelope import Envelope
from protocol.flower_records import pack
from protocol.states import Reason
from server.directory import Directory
from server.exchange import Answer, Exchange, Letter, error_reason


@pytest.fixture
def exchange(grid: Any, clock: Any, registry: Path) -> Exchange:
    """An exchange with the three hospitals, which echo what they get."""
    for hospital in grid.hospitals.values():
        hospital.answer = echo(hospital)
    return Exchange(grid, Directory(grid, registry, ()), clock=clock, sleep=clock.sleep)


def echo(hospital: Any, *first: Any) -> Callable[[Any], Any]:
    """Answer `first`, one a message (None is silence), and afterwards an envelope."""
    script = list(first)

    def answer(message: Any) -> Any:
        hospital.received = getattr(hospital, "received", 0) + 1
        return script.pop(0) if script else Envelope(b"header", b"signature", b"payload")

    return answer


def letter(site: str, *, optional: bool = False) -> Letter:
    """A letter to one hospital."""
    return Letter(site, f"id-{site}", pack(Envelope(b"h", b"s", b"p")), 3, optional)


def outcomes(answers: list[Answer]) -> dict[str, Reason | None]:
    """Reason by site."""
    return {answer.letter.site: answer.reason for answer in answers}


ALL = ("hospital-a", "hospital-b", "hospital-c")


def test_answers_come_as_they_are_ready(exchange: Exchange, grid: Any) -> None:
    """A fast hospital's answer does not wait for a slow one's."""
    for seconds, site in enumerate(ALL):
        grid.hospitals[site].delay = 10.0 * (2 - seconds)
    answers = list(exchange.gather([letter(site) for site in ALL], 60))
    assert [answer.letter.site for answer in answers] == list(reversed(ALL))
    assert answers[-1].seconds == pytest.approx(20, abs=0.5)


def test_silence_ends_at_the_deadline(exchange: Exchange, grid: Any, clock: Any) -> None:
    """A hospital that says nothing is late at the deadline, and its later answer is dropped."""
    silent = grid.hospitals["hospital-b"]
    silent.delay = 100.0
    started = clock.now
    answers = list(exchange.gather([letter(site) for site in ALL], 30))
    assert outcomes(answers)["hospital-b"] is Reason.TOO_LATE
    assert clock.now - started == pytest.approx(30, abs=2)
    clock.sleep(100)
    again = list(exchange.gather([letter("hospital-a")], 30))
    assert outcomes(again) == {"hospital-a": None}


def test_restarted_node_is_sent_its_request_again(
    exchange: Exchange, grid: Any, clock: Any
) -> None:
    """A node that started anew has lost the message silently; it gets it once more."""
    hospital = grid.hospitals["hospital-a"]
    hospital.answer = echo(hospital, None)
    clock.at(10, lambda: setattr(hospital, "activated", "t1"))
    (answer,) = exchange.gather([letter("hospital-a")], 600)
    assert answer.reason is None
    assert answer.resent == 1
    assert answer.seconds < 15


def test_restarted_superlink_is_given_all_again(
    grid: Any, clock: Any, registry: Path, exchange: Exchange
) -> None:
    """A SuperLink that died may have lost what it was handing out: open requests go again."""
    epoch = ["one"]
    ours = Exchange(
        grid,
        Directory(grid, registry, ()),
        clock=clock,
        sleep=clock.sleep,
        epoch=lambda: epoch[0],
    )
    hospital = grid.hospitals["hospital-a"]
    hospital.answer = echo(hospital, None)
    clock.at(10, lambda: epoch.append(epoch.pop() + "more"))
    (answer,) = ours.gather([letter("hospital-a")], 600)
    assert answer.reason is None
    assert answer.resent == 1


def test_idle_node_does_not_have_it(
    grid: Any, clock: Any, registry: Path, exchange: Exchange
) -> None:
    """A node that asks for other work and owes an answer is sent the request again; a busy one,
    which does not ask, is left to work."""
    asked: dict[str, float] = {}
    ours = Exchange(
        grid,
        Directory(grid, registry, ()),
        clock=clock,
        sleep=clock.sleep,
        pulse=lambda: asked | {"hospital-a": clock.now},
        wall_clock=clock,
    )
    idle, busy = grid.hospitals["hospital-a"], grid.hospitals["hospital-b"]
    idle.answer = echo(idle, None)
    busy.delay = 120.0
    asked["hospital-b"] = clock.now + 1
    answers = {a.letter.site: a for a in ours.gather([letter(s) for s in ALL[:2]], 600)}
    assert answers["hospital-a"].resent == 1
    assert answers["hospital-a"].seconds == pytest.approx(12, abs=3)
    assert answers["hospital-b"].resent == 0


def test_node_that_comes_back_counts(exchange: Exchange, grid: Any, clock: Any) -> None:
    """Flower calls a node unavailable; it comes back within the grace and answers."""
    hospital = grid.hospitals["hospital-a"]
    hospital.answer = echo(hospital, Error(5, "Node Unavailable"))

    def go() -> None:
        hospital.online = False

    def come() -> None:
        hospital.online, hospital.activated = True, "t1"

    clock.at(0.1, go)
    clock.at(30, come)
    (answer,) = exchange.gather([letter("hospital-a")], 600)
    assert answer.reason is None
    assert answer.seconds == pytest.approx(31, abs=3)


def test_node_that_stays_away_is_lost(exchange: Exchange, grid: Any, clock: Any) -> None:
    """Nobody waits an hour's deadline for a hospital that is gone."""
    hospital = grid.hospitals["hospital-a"]
    hospital.answer = echo(hospital, Error(5, "Node Unavailable"))
    clock.at(0.1, lambda: setattr(hospital, "online", False))
    started = clock.now
    (answer,) = exchange.gather([letter("hospital-a")], 3600)
    assert answer.reason is Reason.NODE_UNAVAILABLE
    assert clock.now - started < 60


@pytest.mark.parametrize(
    "error", [Error(8, "stopped"), Error(2, "fedward:interrupted"), Error(3, "expired")]
)
def test_fault_that_passes_is_asked_again(exchange: Exchange, grid: Any, error: Error) -> None:
    """A killed ClientApp costs seconds: the trainer has the answer and gives it again."""
    hospital = grid.hospitals["hospital-a"]
    hospital.answer = echo(hospital, error, error)
    (answer,) = exchange.gather([letter("hospital-a")], 600)
    assert answer.reason is None
    assert answer.resent == 2


def test_fault_that_stays_is_a_reason(exchange: Exchange, grid: Any) -> None:
    """After a few tries the fault is the answer."""
    hospital = grid.hospitals["hospital-a"]
    hospital.answer = echo(hospital, *[Error(8, "stopped")] * 20)
    (answer,) = exchange.gather([letter("hospital-a")], 3600)
    assert answer.reason is Reason.CLIENT_APP_DIED
    assert answer.seconds < 60


def test_hostile_bytes_cost_nobody_else(exchange: Exchange, grid: Any) -> None:
    """A reply that breaks Flower's decoder takes the others' with it; they are asked again."""
    grid.poison = {"hospital-b"}
    answers = list(exchange.gather([letter(site) for site in ALL], 60))
    assert outcomes(answers) == {
        "hospital-a": None,
        "hospital-b": Reason.MALFORMED,
        "hospital-c": None,
    }


def test_optional_letters_hold_nothing_up(exchange: Exchange, grid: Any) -> None:
    """An optional letter's answer comes with a later exchange if it is not there in time."""
    grid.hospitals["hospital-c"].delay = 20.0
    first = list(exchange.gather([letter("hospital-a"), letter("hospital-c", optional=True)], 600))
    assert outcomes(first) == {"hospital-a": None}
    grid.hospitals["hospital-a"].delay = 30.0
    second = list(exchange.gather([letter("hospital-a")], 600))
    assert outcomes(second) == {"hospital-a": None, "hospital-c": None}


def test_texts_of_errors_do_not_travel() -> None:
    """Of a Flower error only our own reason codes are taken."""
    assert error_reason(2, "<class 'X'>:<'fedward:out_of_memory'>") is Reason.OUT_OF_MEMORY
    assert error_reason(2, "fedward:patient_4711") is Reason.LINK_ERROR
    assert error_reason(5, "") is Reason.NODE_UNAVAILABLE
    assert error_reason(99, "whatever") is Reason.FLOWER_ERROR
