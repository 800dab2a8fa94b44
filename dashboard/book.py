"""The rows that a batch of events touches, fetched at once and found again without a query.

A round of a thousand hospitals is a thousand results in one batch. Looked up and written one by
one they took 3.5 s; fetched and written together, a fraction of it (bench/dashboard.py prints it).
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from protocol.events import Event, LoneEvaluated, SitePrepared, SiteResult, StudyEvaluated

from .models import Round, SiteRound, SiteTotal, Study

SiteEvent = SitePrepared | SiteResult | StudyEvaluated | LoneEvaluated
CHUNK: Final = 500  # names in one query; SQLite allows 999 variables on old builds


class Book:
    """Studies, rounds and site rows of one transaction."""

    def __init__(self, session: Session, events: Sequence[Event]) -> None:
        self.session = session
        self._studies: dict[str, Study] = {}
        self._rounds: dict[tuple[str, int], Round] = {}
        self._totals: dict[tuple[str, str], SiteTotal] = {}
        self._site_rounds: dict[tuple[str, int, str, str], SiteRound] = {}
        for study_id in {event.study_id for event in events}:
            self._fetch(study_id, [event for event in events if event.study_id == study_id])

    def study(self, study_id: str) -> Study | None:
        """The study, if it is known."""
        return self._studies.get(study_id)

    def add_study(self, study: Study) -> Study:
        """Keep a new one."""
        self._studies[study.study_id] = study
        self.session.add(study)
        return study

    def round(self, study_id: str, number: int) -> Round | None:
        """The round, if it was told."""
        return self._rounds.get((study_id, number))

    def add_round(self, study_id: str, number: int) -> Round:
        """Keep a new one; the caller fills in when it started."""
        made = Round(
            study_id=study_id, round=number, attempts=1, sites_asked=0, bytes_up=0, bytes_down=0
        )
        self._rounds[study_id, number] = made
        self.session.add(made)
        return made

    def total(self, study_id: str, site: str) -> SiteTotal:
        """A site's sums in a study; new ones begin at zero."""
        found = self._totals.get((study_id, site))
        if found is None:
            numbers = dict.fromkeys(_TOTAL_NUMBERS, 0)
            found = SiteTotal(study_id=study_id, site=site, outcome="", **numbers)
            self._totals[study_id, site] = found
            self.session.add(found)
        return found

    def put_site_round(self, event: SiteEvent, task: str, number: int, **columns: Any) -> None:
        """Write what a site did in a round, over what an earlier attempt left there."""
        key = (event.study_id, number, task, event.site)
        found = self._site_rounds.get(key)
        if found is None:
            found = SiteRound(study_id=event.study_id, round=number, task=task, site=event.site)
            self._site_rounds[key] = found
            self.session.add(found)
        own = {"at": event.at, "bytes_up": event.bytes_up, "bytes_down": event.bytes_down}
        for name, value in (_SITE_ROUND_BLANK | own | columns).items():
            setattr(found, name, value)

    def _fetch(self, study_id: str, events: list[Event]) -> None:
        study = self.session.get(Study, study_id)
        if study is None:
            return
        self._studies[study_id] = study
        numbers = {study.round, *(getattr(event, "round", 0) for event in events)}
        for chunk in _chunks(sorted(numbers)):
            for row in self.session.scalars(
                select(Round).where(Round.study_id == study_id, Round.round.in_(chunk))
            ):
                self._rounds[study_id, row.round] = row
        names = sorted({event.site for event in events if isinstance(event, SiteEvent)})
        for chunk in _chunks(names):
            for total in self.session.scalars(
                select(SiteTotal).where(SiteTotal.study_id == study_id, SiteTotal.site.in_(chunk))
            ):
                self._totals[study_id, total.site] = total
                numbers.add(total.round)
            for done in self.session.scalars(
                select(SiteRound).where(
                    SiteRound.study_id == study_id,
                    SiteRound.site.in_(chunk),
                    SiteRound.round.between(min(numbers), max(numbers)),
                )
            ):
                if done.round in numbers:
                    self._site_rounds[study_id, done.round, done.task, done.site] = done


_TOTAL_NUMBERS: Final = (
    "round",
    "train_examples",
    "heldout_examples",
    "rounds_ok",
    "rounds_missed",
    "bytes_up",
    "bytes_down",
    "raw_bytes_up",
    "raw_bytes_down",
)
_SITE_ROUND_BLANK: Final[dict[str, Any]] = {
    "reason": None,
    "weight": 0.0,
    "seconds": 0.0,
    "seconds_work": 0.0,
    "steps": 0,
    "tokens": 0,
    "resent": 0,
    "train_loss": None,
    "update_norm": None,
    "eval_loss": None,
    "eval_accuracy": None,
}


def _chunks(items: list[Any]) -> Iterable[list[Any]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
