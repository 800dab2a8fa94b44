"""What a study will cost, told before it begins, and how near that was."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import MANIFEST

from protocol.events import RoundStarted, SitePrepared, SiteResult, StudyForecast
from protocol.messages import Evaluation, Request, Task, Timing
from protocol.states import SiteOutcome, StudyState
from protocol.study import StudySettings
from server.folder import StudyFolder
from server.forecast import aggregator_bytes, encoded_bytes, forecast, known_paces
from server.report import report

Study = Callable[..., StudyFolder]


def of(folder: StudyFolder, kind: type[Any]) -> list[Any]:
    """The events of one kind."""
    return [event for event in folder.events if isinstance(event, kind)]


def settings(**sections: object) -> StudySettings:
    """A small study."""
    return StudySettings.model_validate({"name": "trial", "model": {"base": "b"}} | sections)


def prepared(site: str, **fields: object) -> SitePrepared:
    """A hospital that answered prepare."""
    return SitePrepared.model_validate(
        {"study_id": "trial-1", "seq": 1, "at": 0, "site": site, "outcome": "ok"} | fields
    )


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4", "nf4", "topk-0.1"])
def test_bytes_are_those_that_come(study: Study, hospitals: dict[str, Any], codec: str) -> None:
    """The forecast is what the rounds cost; a header is known to some hundred bytes."""
    folder = study(codec={"up": codec})
    told, came = of(folder, StudyForecast)[0], of(folder, SiteResult)
    slack = 700 * len(came)
    assert told.bytes_up == pytest.approx(sum(event.bytes_up for event in came), abs=slack)
    assert told.bytes_down == pytest.approx(sum(event.bytes_down for event in came), abs=slack)
    both = report(folder.events)["forecast"]
    assert both["bytes_up"]["told"] == told.bytes_up


def test_it_is_told_before_the_first_round_and_once(study: Study) -> None:
    """Also in a study that is resumed."""
    folder = study()
    kinds = [type(event) for event in folder.events]
    assert kinds.index(StudyForecast) < kinds.index(RoundStarted)
    (folder.path / "verdict.json").unlink(missing_ok=True)
    folder = study()
    assert len(of(folder, StudyForecast)) == 1


def test_an_encoding_is_measured_not_guessed() -> None:
    """Bits a value of the codecs' own table, with their scales."""
    numel = 3_000_000
    assert encoded_bytes("fp32", numel) == pytest.approx(4 * numel, rel=1e-4)
    assert encoded_bytes("int4", numel) == pytest.approx(4.25 / 8 * numel, rel=0.01)


def test_seconds_follow_what_was_measured(tmp_path: Path) -> None:
    """16 rows forward take 1.6 s, so a step of them about three times that; ten steps a round."""
    asked = settings(training={"steps": 10, "batch_size": 16})
    events = {
        "a": prepared(
            "a",
            evaluation=Evaluation(examples=100, loss=1.0),
            timing=Timing(evaluate=10.0, total=10.0),
        ),
        "b": prepared("b"),
    }
    paces = known_paces(asked, events, tmp_path)
    assert paces["a"].step == pytest.approx(4.8)
    assert paces["b"].step is None
    ranks: dict[str, int | None] = {"a": None, "b": None}
    made = forecast(asked, MANIFEST, events, ranks, paces, tmp_path)
    assert made.sites[0].seconds == pytest.approx(48.0)
    assert made.seconds_round is None  # nobody knows how fast b is


def test_an_earlier_study_tells_pace_and_link(study: Study, hospitals: dict[str, Any]) -> None:
    """The second study on the same base knows a hospital's seconds a step and bytes a second."""

    def behave(hospital: Any) -> Callable[[Request, Any], Any]:
        def answer(request: Request, sent: Any) -> Any:
            timing = Timing(train=20.0, total=20.0) if request.task is Task.TRAIN else Timing()
            return hospital.truth(request, sent, timing=timing)

        return answer

    for hospital in hospitals.values():
        hospital.delay = 25.0
        hospital.behave = behave(hospital)
    study("trial-1")
    second = of(study("trial-2"), StudyForecast)[0]
    site = second.sites[0]
    assert site.link_bytes_per_second == pytest.approx(
        (site.bytes_up + site.bytes_down) / 5.0, rel=0.2
    )
    assert site.seconds == pytest.approx(25.0, rel=0.2)
    assert second.seconds_round == pytest.approx(25.0, rel=0.2)


def test_a_study_that_cannot_fit_does_not_begin(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict names what is short, how much there is, and what would do."""
    monkeypatch.setattr(
        "server.forecast.psutil.virtual_memory", lambda: SimpleNamespace(available=100)
    )
    folder = study()
    assert folder.verdict is not None
    assert folder.verdict.state is StudyState.FAILED
    assert "of memory and has 100 B free" in folder.verdict.verdict
    assert not of(folder, SiteResult)


def test_what_is_tight_is_a_warning(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than half of what is free is told, and the study goes on."""
    needed = aggregator_bytes(settings(), MANIFEST.numel, 3)
    monkeypatch.setattr(
        "server.forecast.psutil.virtual_memory",
        lambda: SimpleNamespace(available=needed * 3 // 2),
    )
    folder = study()
    (warning,) = of(folder, StudyForecast)[0].warnings
    assert "of memory" in warning
    assert {event.outcome for event in of(folder, SiteResult)} == {SiteOutcome.OK}


def test_a_deadline_that_no_round_can_meet_is_told(tmp_path: Path) -> None:
    """With both numbers."""
    asked = settings(rounds={"deadline_seconds": 30})
    event = prepared(
        "a",
        evaluation=Evaluation(examples=10, loss=1.0),
        timing=Timing(evaluate=10.0, total=10.0),
    )
    paces = known_paces(asked, {"a": event}, tmp_path)
    made = forecast(asked, MANIFEST, {"a": event}, {"a": None}, paces, tmp_path)
    assert any("rounds.deadline_seconds = 30" in warning for warning in made.warnings)


@pytest.mark.parametrize(
    ("aggregation", "flat"),
    [
        ({"strategy": "fedavg"}, True),
        ({"strategy": "scaffold"}, True),
        ({"strategy": "median"}, False),
        ({"lora": "flexlora"}, False),
    ],
)
def test_memory_grows_with_hospitals_where_the_method_does(
    aggregation: dict[str, Any], flat: bool
) -> None:
    """Streaming methods need the same for 5 and for 12 hospitals."""
    asked = settings(aggregation=aggregation)
    few, many = (aggregator_bytes(asked, 1000, sites) for sites in (5, 12))
    assert (few == many) is flat
