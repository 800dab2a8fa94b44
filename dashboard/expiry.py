"""When the federation's certificates end, and whether a study may begin before that.

Files are named in `[certificates]` of control-plane.toml; hospitals' certificates stand in the
registry, because their files are at the hospitals.
"""

import time
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from protocol.registry import EnrolledSite, Registry
from protocol.study import StudySettings

from . import views
from .certificates import Validity, of_certificate, of_lists
from .models import Round, Study
from .problems import Problem
from .settings import ControlPlaneSettings

WARN_DAYS = (1, 7, 30)
SHORT_DAYS = 60  # of life; the alert rules have the same number, in seconds
PEOPLE = {"coordinator", "operator"}  # a study goes on without their certificates
FORECAST_ROUNDS = 10

_SITE = "`fedward node enrol` at the hospital, then `fedward certs approve --renew`"
_RENEW = {"ca": "`fedward certs rotate --ca`"}
_SERVER = "`fedward certs rotate`"


def validities(settings: ControlPlaneSettings, registry: Registry) -> dict[str, Validity]:
    """From when until when each certificate is good; of hospitals, those that are enrolled."""
    found = {
        name: Validity(_issued(site), site.not_after.timestamp())
        for name, site in registry.active().items()
        if site.not_after is not None
    }
    files = {"control-plane": settings.listen.certificate, **settings.certificates}
    for name, file in files.items():
        known = of_certificate(file)
        if known is not None:
            found[name] = known
    return found


def _issued(site: EnrolledSite) -> float | None:
    moment = site.renewed_at or site.enrolled_at
    return moment.timestamp() if moment is not None else None


def certificate_views(
    settings: ControlPlaneSettings, registry: Registry, now: float
) -> list[views.CertificateView]:
    """Every certificate, the one that ends first in front."""
    found = [
        views.CertificateView(
            name=name,
            not_after=known.end,
            warning=warning(known, now),
            renew=_command(name, registry),
        )
        for name, known in validities(settings, registry).items()
    ]
    if settings.revocation_list and (listed := of_lists(settings.revocation_list)):
        # It lives a week and is renewed daily, so only its last day is worth a word.
        days = warning(listed, now)
        found.append(
            views.CertificateView(
                name="revocation-list",
                not_after=listed.end,
                warning=days if days in {0, 1} else None,
                renew="`fedward certs rotate --crl`",
            )
        )
    return sorted(found, key=lambda one: one.not_after)


def warning(known: Validity, now: float) -> int | None:
    """1, 7 or 30 when fewer days than that are left, 0 when it has ended, else None.

    A certificate that lives a month is renewed in its last third; 30 days say nothing about it.
    """
    if known.end <= now:
        return 0
    short = known.begin is not None and known.end - known.begin <= SHORT_DAYS * 86400
    days = WARN_DAYS[:-1] if short else WARN_DAYS
    return next((one for one in days if known.end - now < one * 86400), None)


def check_study(
    session: Session, asked: StudySettings, settings: ControlPlaneSettings, registry: Registry
) -> None:
    """Refuse a study that would outlive a certificate it needs.

    Raises:
        Problem: with the certificate, its day and the command that renews it.
    """
    now = time.time()
    seconds, how = estimate(session, asked)
    sites = set(asked.sites or registry.active())
    for name, known in validities(settings, registry).items():
        end = known.end
        needed = name in sites if name in registry.sites else name not in PEOPLE
        if needed and end < now + seconds:
            raise Problem(
                409,
                "certificate-ends",
                f"the certificate of {name} ends at {_day(end)}, before the estimated end of this "
                f"study at {_day(now + seconds)} ({how}); renew it first: "
                f"{_command(name, registry)}",
            )


def estimate(session: Session, asked: StudySettings) -> tuple[float, str]:
    """How long the study will take, and from what that is known.

    From its own past rounds where a study of that name has run; else from the longest that its
    settings allow, which is the only bound there is.
    """
    count = asked.rounds.count
    newest = session.scalars(
        select(Round.seconds)
        .join(Study, Study.study_id == Round.study_id)
        .where(Study.name == asked.name, Round.seconds.is_not(None))
        .order_by(Round.finished_at.desc())
        .limit(FORECAST_ROUNDS)
    ).all()
    lengths = [seconds for seconds in newest if seconds is not None]
    if lengths:
        mean = sum(lengths) / len(lengths)
        return count * mean, f"{count} rounds of {mean:.0f} s, as long as the last of that name"
    longest = asked.rounds.deadline_seconds
    return (
        asked.rounds.join_seconds + count * longest,
        f"{count} rounds of at most {longest:.0f} s, rounds.deadline_seconds",
    )


def _command(name: str, registry: Registry) -> str:
    return _SITE if name in registry.sites else _RENEW.get(name, _SERVER)


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
