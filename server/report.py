"""A study's report: what happened, in numbers, from its journal and nothing else.

`report(events)` is a pure function, so a report can be made again from a journal at any time.
Bytes are payload bytes (header, signature and encoded adapter of our own messages), `flower` is
Flower's own total over the study's runs.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from protocol.events import (
    Event,
    LoneEvaluated,
    RoundFinished,
    SitePrepared,
    SiteResult,
    StudyEnded,
    StudyEvaluated,
    StudyForecast,
    StudyInterrupted,
    StudyQueued,
    StudyStarted,
)
from protocol.files import write_atomic
from protocol.messages import Evaluation
from protocol.states import SiteOutcome

from .summary import add_evaluations

FILE = "report.json"


def report(events: Sequence[Event]) -> dict[str, Any]:
    """Everything worth telling about a study, as plain JSON."""
    ended = next((event for event in events if isinstance(event, StudyEnded)), None)
    queued = next((event for event in events if isinstance(event, StudyQueued)), None)
    rounds = _rounds(events)
    sites = _sites(events)
    return {
        "study_id": events[0].study_id if events else "",
        "name": queued.settings.name if queued else "",
        "settings": queued.settings.model_dump(mode="json") if queued else None,
        "state": ended.state.value if ended else "running",
        "verdict": ended.verdict if ended else "",
        "started_at": events[0].at if events else None,
        "seconds": events[-1].at - events[0].at if events else 0.0,
        "attempts": sum(isinstance(event, StudyStarted) for event in events),
        "sites": sites,
        "accuracy": _accuracy(events),
        "rounds": rounds,
        "rounds_aggregated": sum(row["aggregated"] for row in rounds),
        "seconds_per_round": _seconds(rounds),
        "bytes": {
            "up": sum(site["bytes"]["up"] for site in sites.values()),
            "down": sum(site["bytes"]["down"] for site in sites.values()),
            "flower_in": ended.flower_bytes_in if ended else 0,
            "flower_out": ended.flower_bytes_out if ended else 0,
        },
        "forecast": _forecast(events, rounds),
        "faults": _faults(events),
    }


def write_report(folder: Path, events: Sequence[Event]) -> Path:
    """Write `report(events)` to report.json in `folder`."""
    path = folder / FILE
    write_atomic(path, json.dumps(report(events), indent=2).encode() + b"\n")
    return path


def _sites(events: Sequence[Event]) -> dict[str, dict[str, Any]]:
    names = sorted({event.site for event in events if hasattr(event, "site")})
    return {name: _site([e for e in events if getattr(e, "site", "") == name]) for name in names}


def _site(events: Sequence[Event]) -> dict[str, Any]:
    prepared = [e for e in events if isinstance(e, SitePrepared)]
    results = [e for e in events if isinstance(e, SiteResult)]
    ready = [e for e in prepared if e.outcome is SiteOutcome.OK]
    outcomes = Counter(event.outcome.value for event in results)
    healths = [event.health for event in prepared] + [event.health for event in results]
    loads = [health.base_loads for health in healths if health is not None]
    evaluations = {
        "base": next((e.evaluation for e in reversed(prepared) if e.evaluation), None),
        "lone": next((e.evaluation for e in events if isinstance(e, LoneEvaluated)), None),
        "federated": next((e.evaluation for e in events if isinstance(e, StudyEvaluated)), None),
    }
    return {
        "train_examples": ready[-1].train_examples if ready else 0,
        "heldout_examples": ready[-1].heldout_examples if ready else 0,
        "accuracy": {name: _accuracy_of(one) for name, one in evaluations.items()},
        "loss": {name: one.loss if one else None for name, one in evaluations.items()},
        "bytes": {
            "up": sum(getattr(event, "bytes_up", 0) for event in events),
            "down": sum(getattr(event, "bytes_down", 0) for event in events),
            "raw_up": sum(event.raw_bytes_up for event in results),
            "raw_down": sum(event.raw_bytes_down for event in results),
        },
        "rounds": dict(outcomes),
        "resent": sum(event.resent for event in results),
        "base_loads": max(loads, default=0),
    }


def _rounds(events: Sequence[Event]) -> list[dict[str, Any]]:
    """One row a round; a round repeated after an interruption shows its last attempt."""
    finished = {event.round: event for event in events if isinstance(event, RoundFinished)}
    rows = []
    for number, event in sorted(finished.items()):
        results = {e.site: e for e in events if isinstance(e, SiteResult) and e.round == number}
        rows.append(
            {
                "round": number,
                "aggregated": event.aggregated,
                "sites_ok": event.sites_ok,
                "seconds": event.seconds,
                "seconds_training": event.seconds_training,
                "seconds_other": max(0.0, event.seconds - event.seconds_training),
                "seconds_aggregate": event.seconds_aggregate,
                "train_loss": event.train_loss,
                "eval_loss": event.evaluation.loss if event.evaluation else None,
                "eval_accuracy": _accuracy_of(event.evaluation),
                "update_norm": event.update_norm,
                "captured_energy": event.captured_energy,
                "sites": {
                    site: {
                        "outcome": e.outcome.value,
                        "reason": e.reason.value if e.reason else None,
                        "weight": e.weight,
                        "bytes_up": e.bytes_up,
                        "bytes_down": e.bytes_down,
                        "seconds": e.seconds,
                        "seconds_training": e.timing.train + e.timing.evaluate,
                        "resent": e.resent,
                    }
                    for site, e in sorted(results.items())
                },
            }
        )
    return rows


def _forecast(events: Sequence[Event], rounds: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What was foretold and what came, side by side, for the rounds that were."""
    told = next((event for event in events if isinstance(event, StudyForecast)), None)
    if told is None:
        return None
    results = [event for event in events if isinstance(event, SiteResult)]
    share = len(rounds)
    sites = {}
    for site in told.sites:
        mine = [e for e in results if e.site == site.site and e.outcome is SiteOutcome.OK]
        sites[site.site] = {
            "seconds": {"told": site.seconds, "came": _mean([e.seconds for e in mine])},
            "bytes_up": {"told": site.bytes_up, "came": _mean([e.bytes_up for e in mine])},
            "bytes_down": {"told": site.bytes_down, "came": _mean([e.bytes_down for e in mine])},
        }
    return {
        "warnings": list(told.warnings),
        "seconds_round": {
            "told": told.seconds_round,
            "came": _mean([row["seconds"] for row in rounds]),
        },
        "bytes_up": {
            "told": sum(site.bytes_up for site in told.sites) * share,
            "came": sum(event.bytes_up for event in results),
        },
        "bytes_down": {
            "told": sum(site.bytes_down for site in told.sites) * share,
            "came": sum(event.bytes_down for event in results),
        },
        "sites": sites,
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _seconds(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    if not rounds:
        return {"total": 0.0, "training": 0.0, "other": 0.0}
    return {
        "total": fmean(row["seconds"] for row in rounds),
        "training": fmean(row["seconds_training"] for row in rounds),
        "other": fmean(row["seconds_other"] for row in rounds),
    }


def _accuracy(events: Sequence[Event]) -> dict[str, Any]:
    """Over all hospitals' held-out rows together; `lone` is each hospital's own adapter on its."""
    base = {e.site: e.evaluation for e in events if isinstance(e, SitePrepared) and e.evaluation}
    lone = {e.site: e.evaluation for e in events if isinstance(e, LoneEvaluated)}
    federated = [e.evaluation for e in events if isinstance(e, StudyEvaluated)]
    return {
        "base": _accuracy_of(add_evaluations(list(base.values()))),
        "lone": {site: one.accuracy for site, one in sorted(lone.items())},
        "lone_best": max((one.accuracy for one in lone.values()), default=None),
        "federated": _accuracy_of(add_evaluations(federated)),
    }


def _accuracy_of(evaluation: Evaluation | None) -> float | None:
    return evaluation.accuracy if evaluation else None


def _faults(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Everything that did not go as planned, in order."""
    faults: list[dict[str, Any]] = []
    for event in events:
        if isinstance(event, StudyInterrupted):
            faults.append(
                {"at": event.at, "what": "interrupted", "round": event.last_round + 1}
                | {"cause": event.cause}
            )
        elif isinstance(event, SiteResult | SitePrepared) and event.outcome is not SiteOutcome.OK:
            faults.append(
                {
                    "at": event.at,
                    "what": event.outcome.value,
                    "site": event.site,
                    "round": event.round if isinstance(event, SiteResult) else 0,
                    "cause": event.reason.value if event.reason else "",
                }
            )
        elif isinstance(event, SiteResult) and event.resent:
            faults.append(
                {
                    "at": event.at,
                    "what": "sent again",
                    "site": event.site,
                    "round": event.round,
                    "cause": f"{event.resent} time(s)",
                }
            )
    return faults
