"""When the federation's certificates end, and whether a study may begin before that.

Files are named in `[certificates]` of control-plane.toml; hospitals' certificates stand in the
registry, because their files are at the hospitals.
"""

import time
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from protocol.registry import Registry
from protocol.study import StudySettings

from . import views
from .certificates import next_update, not_after
from .models import Round, Study
from .problems import Problem
from .settings import ControlPlaneSettings

WARN_DAYS = (1, 7, 30)
PEOPLE = {"coordinator", "operator"}  # a study goes on without their certificates
FORECAST_ROUNDS = 10

_SITE = "`fedward node enrol` at the hospital, then `fedward certs approve --renew`"
_RENEW = {"ca": "`fedward certs rotate --ca`"}
_SERVER = "`fedward certs rotate`"


def ends(settings: ControlPlaneSettings, registry: Registry) -> dict[str, float]:
    """Each certificate's end in unix seconds, by name; of hospitals, those that are enrolled."""
    found = {
        name: site.not_after.timestamp()
        for name, site in registry.active().items()
        if site.not_after is not None
    }
    files = {"control-plane": settings.listen.certificate, **settings.certificates}
    for name, file in files.items():
        moment = not_after(file)
        if moment is not None:
            found[name] = moment
    return found


def certificate_views(
    settings: ControlPlaneSettings, registry: Registry, now: float
) -> list[views.CertificateView]:
    """Every certificate, the one that ends first in front."""
    found = [
        views.CertificateView(
            name=name,
            not_after=end,
            warning=warning(end, now),
            renew=_command(name, registry),
        )
        for name, end in ends(settings, registry).items()
    ]
    if settings.revocation_list and (end := next_update(settings.revocation_list)):
        # It lives a week and is renewed daily, so only its last day is worth a word.
        late = warning(end, now) in {0, 1}
        found.append(
            views.CertificateView(
                name="revocation-list",
                not_after=end,
                warning=warning(end, now) if late else None,
                renew="`fedward certs rotate --crl`",
            )
        )
    return sorted(found, key=lambda one: one.not_after)


def warning(end: float, now: float) -> int | None:
    """1, 7 or 30 when fewer days than that are left, 0 when it has ended, else None."""
    if end <= now:
        return 0
    return next((days for days in WARN_DAYS if end - now < days * 86400), None)


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
    for name, end in ends(settings, registry).items():
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
