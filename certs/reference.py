"""The reference page of every refusal: `python -m certs.reference > docs/security-refusals.md`.

A test compares the page with the sentences, so it cannot fall behind.
"""

from certs.sentences import GROUPS

_INTRODUCTION = """\
# What is refused, and with which sentence

Made by `python -m certs.reference`; do not edit by hand. Words in braces are filled in: a file, a
name, a time. The code is fixed, and may stand in logs and counters. Nothing on disk is changed by
what ends with one of these sentences."""


def reference() -> str:
    """The page as Markdown."""
    lines = [_INTRODUCTION]
    for kind, group in GROUPS:
        lines += ["", f"## {kind.__name__}", "", (kind.__doc__ or "").splitlines()[0], ""]
        lines += ["| code | sentence | what to do |", "|---|---|---|"]
        lines += [f"| `{code}` | {_cell(text)} | {_cell(hint)} |" for code, text, hint in group]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A sentence for a table: without the marks that say how a value is shown."""
    return text.replace("|", "\\|").replace("!r}", "}").replace(":04o}", "}")


if __name__ == "__main__":
    print(reference(), end="")
