"""Runbooks: where every alert's link leads."""

import re

import pytest

from .service import Service
from .test_alerts import RULE_LIST, RUNBOOKS

PAGES = sorted(file.stem for file in RUNBOOKS.glob("*.md"))


@pytest.mark.parametrize("rule", RULE_LIST, ids=lambda rule: rule["alert"])
def test_an_alerts_link_leads_to_its_page(
    service: Service, rule: dict[str, dict[str, str]]
) -> None:
    """Without a log-in, with the page's three parts, and only links that lead on."""
    link = rule["annotations"]["runbook_url"]
    prefix = "{{ $externalLabels.runbooks }}"
    assert link.startswith(prefix)
    with service.client(None) as client:
        answer = client.get("/runbooks" + link.removeprefix(prefix))
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        for part in ("What it means", "What to look at", "What to do"):
            assert f"<h2>{part}</h2>" in answer.text
        for target in re.findall(r'href="(/[^"]*)"', answer.text):
            assert client.get(target).status_code == 200, target


def test_the_list_names_every_page(service: Service) -> None:
    """The index of runbooks is complete, and nothing outside the folder can be read."""
    with service.client(None) as client:
        text = client.get("/runbooks").text
        for page in PAGES:
            assert page == "README" or f'href="/runbooks/{page}"' in text
        for name in ("..%2Fsecurity", "FedwardNope", "a" * 80, "%2e%2e"):
            assert client.get(f"/runbooks/{name}").status_code in {404, 422}, name


def test_markdown_is_shown_as_text(service: Service) -> None:
    """Marks become elements; none is left over, and what looks like one is escaped."""
    with service.client(None) as client:
        for page in PAGES:
            body = client.get(f"/runbooks/{page}").text.partition("<main")[2]
            words = re.sub(r"<code>.*?</code>", "", body)
            assert "`" not in words, page
            assert not re.search(r"\]\(|^#|^- |\*\*", words, re.MULTILINE), page
