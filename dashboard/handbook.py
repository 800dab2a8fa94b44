"""The runbooks as pages: where an alert's link leads, with the words of this very version.

They are plain texts without a secret, so they are read without a log-in, at night and on a phone.
"""

import html
import re
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Response
from fastapi import Path as InPath

from .problems import Problem, documented

router = APIRouter(tags=["runbooks"])

_HERE: Final = Path(__file__).parent
_PACKED: Final = _HERE / "runbooks"  # in an image or a wheel
FOLDER: Final = _PACKED if _PACKED.is_dir() else _HERE.parent / "docs" / "runbooks"

_PAGE: Final = """\
<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <meta name="viewport" content="width=device-width, initial-scale=1" />
    <meta name="color-scheme" content="light dark" />
    <title>{title}</title>
    <link rel="icon" href="/static/icon.svg" type="image/svg+xml" />
    <link rel="stylesheet" href="/static/style.css" />
    <script src="/static/js/theme.js"></script>
  </head>
  <body>
    <a class="skip" href="#main">Skip to the content</a>
    <header class="top">
      <a class="brand" href="/">
        <img src="/static/icon.svg" alt="" width="22" height="22" />fedward
      </a>
      <nav aria-label="Pages"><a href="/">Overview</a><a href="/runbooks">Runbooks</a></nav>
    </header>
    <main id="main" class="text">
{body}
    </main>
  </body>
</html>
"""


@router.get("/runbooks", response_class=Response, responses={200: {"content": {"text/html": {}}}})
def index() -> Response:
    """Every alert, and what it is about."""
    return _page("README")


@router.get(
    "/runbooks/{alert}",
    response_class=Response,
    responses={200: {"content": {"text/html": {}}}, **documented(404, 422)},
)
def read_runbook(
    alert: Annotated[
        str, InPath(pattern=r"^[A-Za-z0-9]{1,60}(\.md)?$", examples=["FedwardNodeDown"])
    ],
) -> Response:
    """What an alert means, what to look at, what to do."""
    return _page(alert.removesuffix(".md"))


def _page(name: str) -> Response:
    try:
        text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    except OSError as error:
        raise Problem(404, "not-found", f"there is no runbook of the name {name}") from error
    title = text.partition("\n")[0].removeprefix("# ")
    page = _PAGE.format(title=html.escape(title), body="\n".join(_blocks(text)))
    return Response(page, media_type="text/html; charset=utf-8")


def _blocks(text: str) -> list[str]:
    """Headings, paragraphs and lists, which is all that a runbook has."""
    found: list[str] = []
    for block in re.split(r"\n{2,}", text.strip()):
        marks, _, rest = block.partition(" ")
        if re.fullmatch("#{1,3}", marks):
            found.append(f"<h{len(marks)}>{_inline(rest)}</h{len(marks)}>")
        elif re.match(r"- |\d+\. ", block):
            kind = "ul" if block.startswith("- ") else "ol"
            items = re.split(r"(?m)^(?:- |\d+\. )", block)[1:]
            listed = "".join(f"<li>{_inline(item)}</li>" for item in items)
            found.append(f"<{kind}>{listed}</{kind}>")
        else:
            found.append(f"<p>{_inline(block)}</p>")
    return found


def _inline(text: str) -> str:
    """Code and links to other runbooks."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    linked = re.sub(r"\[([^\]]+)\]\((\w+)\.md\)", r'<a href="/runbooks/\2">\1</a>', escaped)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", linked)
