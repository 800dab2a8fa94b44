"""Who may do what: tokens, roles, sessions, and what guessing gets."""

import stat
from pathlib import Path

import httpx
import pytest

from dashboard.access import COOKIE, CSRF_HEADER
from dashboard.tokens import Tokens, token_file
from protocol.control import (
    COMMANDS,
    EVENTS,
    INGEST_EVENTS,
    INGEST_NODES,
    NODES,
    STUDIES,
    Role,
)
from protocol.errors import SettingsError

from .factories import settings
from .service import Service

SESSION = "/api/v1/session"
SUBMISSION = {"settings": settings().model_dump(mode="json")}

# (method, path, body, who may)
DOORS = [
    ("GET", STUDIES, None, {Role.OPERATOR, Role.COORDINATOR}),
    ("POST", STUDIES, SUBMISSION, {Role.COORDINATOR}),
    ("GET", NODES, None, {Role.OPERATOR, Role.COORDINATOR}),
    ("GET", EVENTS, None, {Role.OPERATOR, Role.COORDINATOR}),
    ("GET", "/api/v1/audit", None, {Role.OPERATOR, Role.COORDINATOR}),
    ("GET", "/metrics", None, {Role.OPERATOR, Role.COORDINATOR}),
    ("GET", COMMANDS, None, {Role.AGGREGATOR}),
    ("POST", INGEST_EVENTS, [], {Role.AGGREGATOR}),
    ("POST", INGEST_NODES, [], {Role.AGGREGATOR}),
]


@pytest.mark.parametrize(("method", "path", "body", "allowed"), DOORS)
def test_each_role_may_do_its_own_work_and_no_other(
    service: Service, method: str, path: str, body: object, allowed: set[Role]
) -> None:
    """401 without a token, 403 with another role's, an answer with the right one."""
    with service.client(None) as client:
        assert client.request(method, path, json=body).status_code == 401
    for role in Role:
        with service.client(role) as client:
            status = client.request(method, path, json=body).status_code
            assert status in ({200, 201} if role in allowed else {403}), role


def test_a_browser_logs_in_reads_and_logs_out(service: Service) -> None:
    """The cookie is HttpOnly, Secure and SameSite=Strict, and dead after log-out."""
    with service.client(None) as client:
        answer = _log_in(service, client)
        cookie = answer.headers["set-cookie"]
        for flag in (COOKIE, "HttpOnly", "Secure", "SameSite=strict", "Path=/"):
            assert flag in cookie
        assert client.get(STUDIES).status_code == 200
        kept = dict(client.cookies)
        headers = {CSRF_HEADER: answer.json()["csrf"]}
        assert client.delete(SESSION, headers=headers).status_code == 204
        client.cookies.update(kept)
        assert client.get(STUDIES).status_code == 401


def test_a_change_with_a_cookie_needs_the_csrf_value(service: Service) -> None:
    """Another site's page can make a browser send the cookie, but not the header."""
    with service.client(None) as client:
        csrf = _log_in(service, client).json()["csrf"]
        for headers in ({}, {CSRF_HEADER: "x" * 43}, {CSRF_HEADER: ""}):
            assert client.post(STUDIES, json=SUBMISSION, headers=headers).status_code == 403
        made = client.post(STUDIES, json=SUBMISSION, headers={CSRF_HEADER: csrf})
        assert made.status_code == 201


def test_log_in_from_another_site_is_refused(service: Service) -> None:
    """A page elsewhere cannot log a person in as somebody else."""
    with service.client(None) as client:
        body = {"token": service.token(Role.OPERATOR)}
        answer = client.post(SESSION, json=body, headers={"sec-fetch-site": "cross-site"})
        assert answer.status_code == 403


def test_a_session_ends_when_its_token_is_replaced(fresh: Service) -> None:
    """Replacing a leaked token also ends what was opened with it; no restart is needed."""
    with fresh.client(None) as client:
        _log_in(fresh, client)
        assert client.get(STUDIES).status_code == 200
        token_file(fresh.folder / "tokens", Role.COORDINATOR).write_text("n" * 43)
        assert client.get(STUDIES).status_code == 401


def test_sessions_survive_a_restart(fresh: Service) -> None:
    """An upgrade of the control plane throws nobody out."""
    with fresh.client(None) as client:
        _log_in(fresh, client)
        kept = dict(client.cookies)
    assert fresh.stop() == 0
    fresh.start()
    with fresh.client(None) as client:
        client.cookies.update(kept)
        assert client.get(STUDIES).status_code == 200


def test_guessing_is_slowed_and_counted(fresh: Service) -> None:
    """After ten wrong tokens in a minute the address is told to wait; programs go on."""
    with fresh.client(None) as client:
        codes = [client.post(SESSION, json={"token": "wrong"}).status_code for _ in range(12)]
        assert codes == [401] * 10 + [429] * 2
        answer = client.post(SESSION, json={"token": fresh.token(Role.OPERATOR)})
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) <= 61
        assert client.get(STUDIES, headers={"authorization": "Bearer no"}).status_code == 429
    with fresh.client(Role.OPERATOR) as client:
        assert client.get(STUDIES).status_code == 200


def test_every_answer_has_the_security_headers(service: Service) -> None:
    """The page, the API, errors and static files alike."""
    with service.client(None) as client:
        for path in ("/", "/healthz", STUDIES, "/nowhere", "/static/style.css"):
            headers = client.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"], path
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert "server" not in headers


def test_plain_http_gets_nothing(service: Service) -> None:
    """There is no insecure mode."""
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{service.port}/healthz", timeout=5)


def test_tokens_are_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    """Mode 0600, 43 characters, another for each role, the same at the next start."""
    folder = tmp_path / "tokens"
    Tokens(folder)
    made = {role: token_file(folder, role).read_text() for role in Role}
    assert len(set(made.values())) == len(Role)
    for role, text in made.items():
        assert len(text.strip()) == 43
        assert stat.S_IMODE(token_file(folder, role).stat().st_mode) == 0o600
        assert Tokens(folder).role_of(text.strip()) is role


@pytest.mark.parametrize(
    ("text", "mode", "word"),
    [
        ("short", 0o600, "at least 32 characters"),
        ("", 0o600, "at least 32 characters"),
        ("x" * 43, 0o644, "everybody may read"),
    ],
)
def test_a_weak_token_is_refused_at_the_start(
    tmp_path: Path, text: str, mode: int, word: str
) -> None:
    """No default password comes in by hand either."""
    Tokens(tmp_path)
    file = token_file(tmp_path, Role.OPERATOR)
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(SettingsError, match=word):
        Tokens(tmp_path)


def test_two_roles_cannot_share_a_token(tmp_path: Path) -> None:
    """An operator must not become a coordinator by a slip of the hand."""
    for role in Role:
        file = token_file(tmp_path, role)
        file.write_text("x" * 43)
        file.chmod(0o600)
    with pytest.raises(SettingsError, match="same token"):
        Tokens(tmp_path)


def test_a_second_line_lets_a_token_be_replaced_without_a_gap(tmp_path: Path) -> None:
    """Both the new and the old one are good until the old line is deleted."""
    tokens = Tokens(tmp_path)
    file = token_file(tmp_path, Role.OPERATOR)
    old = file.read_text().strip()
    file.write_text(f"{'n' * 43}\n{old}\n")
    assert tokens.role_of("n" * 43) is Role.OPERATOR
    assert tokens.role_of(old) is Role.OPERATOR
    file.write_text(f"{'n' * 43}\n")
    assert tokens.role_of(old) is None


def _log_in(service: Service, client: httpx.Client) -> httpx.Response:
    answer = client.post(SESSION, json={"token": service.token(Role.COORDINATOR)})
    assert answer.status_code == 200, answer.text
    return answer
