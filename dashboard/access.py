"""Who may do what: bearer tokens for programs, a session cookie for a browser.

A cookie is HttpOnly, Secure and SameSite=Strict, and a change made with it also needs the session's
CSRF value in a header, which another site's page can neither read nor set. A bearer token needs no
such thing: no browser sends it by itself.
"""

import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from sqlalchemy import delete

from protocol import metrics
from protocol.control import Role

from .counting import Tally
from .database import Database
from .models import Audit, BrowserSession
from .problems import Problem
from .tokens import Tokens, digest

log = logging.getLogger(__name__)

COOKIE: Final = "__Host-fedward"  # the prefix makes browsers insist on Secure, Path=/ and our host
CSRF_HEADER: Final = "X-Fedward-CSRF"
READERS: Final = (Role.OPERATOR, Role.COORDINATOR)
GUESSING: Final = (("api", "wrong_token"), ("login", "wrong_token"), ("report", "bad_signature"))
SAFE_METHODS: Final = ("GET", "HEAD")
ADDRESSES: Final = 10_000  # remembered failures; beyond, the oldest address is forgotten


@dataclass(frozen=True)
class Principal:
    """Who speaks: the role, and for a browser its session."""

    role: Role
    session: str = ""
    csrf: str = ""
    expires_at: float = 0.0


class Failures:
    """Wrong tokens per address in the last minute."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, list[float]] = OrderedDict()

    def note(self, address: str) -> None:
        """One more from this address."""
        with self._lock:
            recent = self._recent(address)
            recent.append(time.monotonic())
            self._seen[address] = recent[-self._allowed - 1 :]
            self._seen.move_to_end(address)
            while len(self._seen) > ADDRESSES:
                self._seen.popitem(last=False)

    def check(self, address: str) -> None:
        """Refuse an address that failed too often.

        Raises:
            Problem: 429, with the seconds to wait.
        """
        with self._lock:
            recent = self._recent(address)
            if len(recent) < self._allowed:
                return
            wait = max(1, int(60 - (time.monotonic() - recent[-self._allowed])) + 1)
        raise Problem(
            429,
            "too-many-failures",
            f"too many wrong tokens from this address; try again in {wait} s",
            headers={"Retry-After": str(wait)},
        )

    def _recent(self, address: str) -> list[float]:
        since = time.monotonic() - 60
        return [moment for moment in self._seen.get(address, []) if moment > since]


class Access:
    """The door."""

    def __init__(
        self, database: Database, tokens: Tokens, *, hours: float, failures_per_minute: int
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._hours = hours
        self._failures = Failures(failures_per_minute)
        self._refused = Tally()
        self._refused_lock = threading.Lock()
        # A counter that is first seen at 20 has no increase; the alert needs to have seen its 0.
        for surface, reason in GUESSING:
            self._refused.add(metrics.REQUESTS_REFUSED, 0.0, surface=surface, reason=reason)

    def principal(self, request: Request) -> Principal:
        """Who sends this request.

        Raises:
            Problem: 401 without a valid token or session, 403 for a change without CSRF value,
                429 for an address that guesses.
        """
        offered = request.headers.get("authorization")
        if offered is not None:
            return self._bearer(offered, address_of(request))
        cookie = request.cookies.get(COOKIE)
        if cookie is None:
            self._refuse("api", "no_token")
            raise _unauthorised("give a bearer token of one of the roles, or log in")
        found = self._session(cookie)
        if request.method not in SAFE_METHODS and not hmac.compare_digest(
            request.headers.get(CSRF_HEADER, "").encode(), found.csrf.encode()
        ):
            self._refuse("api", "csrf")
            raise Problem(403, "csrf", f"a change needs the session's {CSRF_HEADER} header")
        return found

    def log_in(self, token: str, address: str) -> tuple[str, Principal]:
        """Open a session: the cookie's value, and who it speaks for.

        An address that failed too often is refused here even with the right token; programs with
        a right bearer token are not, so that one guesser behind a shared address cannot cut off
        the aggregator.
        """
        self._failures.check(address)
        role = self._tokens.role_of(token)
        if role not in READERS:
            self._fail("login", "wrong_token", address)
            raise _unauthorised("this is not the token of a coordinator or an operator")
        cookie, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        expires = time.time() + 3600 * self._hours
        with self._database.writing() as session:
            session.execute(delete(BrowserSession).where(BrowserSession.expires_at < time.time()))
            session.add(
                BrowserSession(
                    id_digest=_hex(cookie),
                    token_digest=digest(token).hex(),
                    csrf=csrf,
                    expires_at=expires,
                )
            )
        self.audit(role, "login", "", address)
        return cookie, Principal(role, _hex(cookie), csrf, expires)

    def log_out(self, principal: Principal, address: str) -> None:
        """End a browser's session."""
        with self._database.writing() as session:
            session.execute(
                delete(BrowserSession).where(BrowserSession.id_digest == principal.session)
            )
        self.audit(principal.role, "logout", "", address)

    def audit(self, actor: str, action: str, subject: str, address: str) -> None:
        """Write down who did what."""
        tally = Tally()
        tally.add(metrics.AUDIT_RECORDS, action=action)
        with self._database.writing() as session:
            session.add(
                Audit(at=time.time(), actor=actor, action=action, subject=subject, address=address)
            )
            tally.write(session)

    def refused(self, surface: str, reason: str) -> None:
        """Count a refusal made elsewhere."""
        self._refuse(surface, reason)

    def flush(self) -> None:
        """Write the refusals counted since; by batches, so that guessing costs no transaction."""
        with self._refused_lock:
            due, self._refused = self._refused, Tally()
        if due:
            with self._database.writing() as session:
                due.write(session)

    def _bearer(self, offered: str, address: str) -> Principal:
        scheme, _, token = offered.partition(" ")
        role = self._tokens.role_of(token.strip()) if scheme.lower() == "bearer" else None
        if role is None:
            self._fail("api", "wrong_token", address)
            raise _unauthorised("the bearer token is not one of the roles'")
        return Principal(role)

    def _session(self, cookie: str) -> Principal:
        with self._database.reading() as session:
            row = session.get(BrowserSession, _hex(cookie))
        role = None
        if row is not None and row.expires_at > time.time():
            role = self._tokens.role_of_digest(bytes.fromhex(row.token_digest))
        if row is None or role is None:
            self._refuse("api", "session")
            raise _unauthorised("the session has ended; log in again")
        return Principal(role, row.id_digest, row.csrf, row.expires_at)

    def _fail(self, surface: str, reason: str, address: str) -> None:
        self._refuse(surface, reason)
        self._failures.check(address)
        self._failures.note(address)

    def _refuse(self, surface: str, reason: str) -> None:
        with self._refused_lock:
            self._refused.add(metrics.REQUESTS_REFUSED, surface=surface, reason=reason)


def address_of(request: Request) -> str:
    """The peer's address."""
    return request.client.host if request.client is not None else ""


def _hex(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def _unauthorised(detail: str) -> Problem:
    return Problem(
        401, "unauthorised", detail, headers={"WWW-Authenticate": 'Bearer realm="fedward"'}
    )
