"""The page in a real browser: what it shows, who can use it, and that nothing is from outside."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.control import SITE_PROGRESS, STUDIES, Role
from protocol.states import Reason, SiteOutcome

from .chromium import LOADED, Browser, browser, missing
from .factories import Story
from .service import Service

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")

PAGES = {
    "overview": "/",
    "study": "/studies/demo-0a1b2c",
    "hospital": "/hospitals/alder",
    "new-study": "/new-study",
}


@pytest.fixture(scope="module")
def told(service: Service) -> Service:
    """A finished study and one in its fifth round, with one hospital in trouble."""
    service.send(Story("earlier-00aa11").whole(rounds=8))
    story = Story("demo-0a1b2c")
    service.send(
        [
            *story.beginning(),
            *(event for number in range(1, 5) for event in story.a_round(number)),
            story.round_started(5),
            story.missing("cedar", 5, SiteOutcome.REFUSED, reason=Reason.NOT_FINITE),
        ]
    )
    service.send_nodes()
    return service


@pytest.fixture(scope="module")
def page(told: Service) -> Iterator[Browser]:
    """A browser in which a coordinator is logged in."""
    with browser() as window:
        window.size(1280, 900, dark=False)
        window.log_in(told.url, told.token(Role.COORDINATOR))
        window.complaints()  # the 401 that brought the log-in page up
        yield window


def text(page: Browser) -> str:
    return str(page.run("return document.body.innerText"))


def test_the_overview_shows_the_federation(told: Service, page: Browser) -> None:
    """Round, curves, hospitals with their bars, and what happened."""
    page.go(told.url + "/", "document.querySelectorAll('.u-wrap').length === 3")
    page.wait("document.querySelectorAll('.log li').length > 10")
    shown = text(page)
    for words in ("demo-0a1b2c", "4 of 5", "alder", "5/10", "cedar is refused (not finite)"):
        assert words in shown, words
    assert page.wait("document.getElementById('link').textContent === 'live'")


def test_the_page_moves_by_itself(told: Service, page: Browser) -> None:
    """A report and an event appear without a reload."""
    page.go(told.url + "/", "document.getElementById('link').textContent === 'live'")
    page.run("window.untouched = true")
    with told.client(None) as client:
        client.post(SITE_PROGRESS, content=told.hospitals.report("birch", step=9))
    page.wait("document.body.innerText.includes('9/10')")
    told.send([Story("fresh-00bb22").queued()])
    page.wait("document.querySelector('.log')?.innerText.includes('fresh-00bb22')")
    assert page.run("return window.untouched")


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_refused(
    told: Service, page: Browser
) -> None:
    """Every request goes to the control plane; the strict policy refuses none of them."""
    for path in PAGES.values():
        page.go(told.url + path, LOADED)
        names = page.run("return performance.getEntriesByType('resource').map((one) => one.name)")
        assert names
        assert [name for name in names if not name.startswith(told.url)] == []
    assert page.complaints() == []


@pytest.mark.parametrize("name", ["overview", "new-study"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_and_can_be_read(
    told: Service, page: Browser, name: str, dark: bool, width: int, axe: str, tmp_path: Path
) -> None:
    """No sideways scrolling, and axe finds nothing serious, contrast included.

    The other pages are looked at in a live federation (test_live.py).
    """
    page.size(width, 900, dark=dark)
    page.go(told.url + PAGES[name], LOADED)
    folder = Path(os.environ.get("FEDWARD_SCREENSHOTS", tmp_path))
    page.judge(folder / f"{name}-{width}-{'dark' if dark else 'light'}.png", width, axe)


def test_the_keyboard_is_enough(told: Service, page: Browser) -> None:
    """Skip link first; then every link and button in order, with a visible outline."""
    page.size(1280, 900, dark=False)
    page.go(told.url + "/", "document.querySelectorAll('.log li').length > 10")
    tab = "\ue004"
    seen = []
    for _ in range(14):
        page.press(tab)
        seen.append(page.run("return document.activeElement.innerText || 'chart or list'"))
        assert page.run("return getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert seen[0] == "Skip to the content"
    for words in ("Overview", "New study", "Theme", "Log out", "demo-0a1b2c"):
        assert words in seen, seen


def test_a_coordinator_starts_and_stops_a_study(told: Service, page: Browser) -> None:
    """From the form to the queue, and back out through the dialogue."""
    page.go(told.url + "/new-study", "document.querySelectorAll('.checks input').length === 3")
    page.run(
        "document.getElementById('f-name').value = 'from-page';"
        "document.getElementById('f-model-base').value = 'tiny';"
        "document.getElementById('site-alder').checked = true;"
        "document.getElementById('site-birch').checked = true;"
        "document.querySelector('form').requestSubmit();"
    )
    page.wait(  # once more where Chromium lost the connection (see Browser.go)
        "location.pathname.startsWith('/studies/from-page-')"
        " || document.querySelector('[role=alert]:not([hidden])')"
        "   && document.querySelector('form').requestSubmit()"
    )
    study_id = page.run("return location.pathname.split('/')[2]")
    study = told.get(f"{STUDIES}/{study_id}")
    assert (study["state"], study["settings"]["sites"]) == ("queued", ["alder", "birch"])
    page.wait("!document.querySelector('button.danger').closest('.row').hidden")
    page.run("document.querySelector('button.danger').click()")
    page.wait("document.querySelector('dialog').open")
    page.run("document.querySelector('dialog button.danger').click()")
    page.wait("document.body.innerText.includes('Stop asked')")
    assert told.get(f"{STUDIES}/{study_id}")["stop_requested_at"] is not None


def test_what_a_stranger_wrote_is_shown_as_text(told: Service, page: Browser) -> None:
    """A verdict or a cause is text, whatever is in it."""
    from protocol.events import StudyInterrupted

    story = Story("script-00cc33")
    cause = "<img src=x onerror=\"document.title='taken'\">"
    told.send([story.queued(), story.make(StudyInterrupted, last_round=0, cause=cause)])
    page.go(
        f"{told.url}/studies/script-00cc33",
        "document.querySelector('.log')?.innerText.includes('onerror')",
    )
    assert page.run("return document.title") != "taken"
