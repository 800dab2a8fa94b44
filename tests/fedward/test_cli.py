"""The command line: a user's mistake is one sentence, a next step and an exit code."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.testing

from fedward import cli
from fedward.federation import existing, load_federation, prepare
from protocol.errors import FedwardError
from protocol.study import load_study

STUDY = '[model]\nbase = "base"\n'


@pytest.fixture
def fedward(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[object]:
    """Runs the CLI in this process; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        code = cli._guarded(lambda: cli.app(list(words), standalone_mode=False))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read the settings file"),
        ("name = ", "not valid TOML"),
        ('name = "s"\n[model]\nbas = "x"\n', "model.bas: unknown key, did you mean 'base'?"),
        ('name = "s"\n', "model: missing"),
        (f'name = "St Mary"\n{STUDY}', "lower-case letters, digits and dashes"),
        (f'name = "s"\n{STUDY}quantization = "nf5"\n', "one of nf4, fp4, int8, none"),
        (f'name = "s"\n{STUDY}[training]\nsteps = 0\n', "training.steps = 0"),
        (f'name = "s"\nsites = ["a"]\n{STUDY}', "can never be met"),
        (f'name = "s"\nsites = ["a", "a", "b"]\n{STUDY}', "named twice"),
        (
            f'name = "s"\n{STUDY}[training]\nlearning_rate = 1e-4\nlearning_rate_end = 1e-3\n',
            "must not exceed",
        ),
        (f'name = "s"\n{STUDY}[codec]\nup = "fp31"\n', "fp31"),
    ],
)
def test_a_wrong_study_is_refused_by_name(
    fedward, tmp_path: Path, text: str | None, words: str
) -> None:
    """Each names the key, its value and what would be right, and nothing is submitted."""
    file = tmp_path / "study.toml"
    if text is not None:
        file.write_text(text)
    code, out, err = fedward("run", str(file))
    assert code == 2
    assert words in err
    assert "Traceback" not in err + out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "rows.jsonl"),
        ("", "rows"),
        ('{"instruction": "q", "output": "a"}\n{"instruction": \n', "line 2"),
        ('{"question": "q", "output": "a"}\n', "instruction"),
    ],
)
def test_bad_data_is_refused_before_anything_starts(
    fedward, tmp_path: Path, content: str | None, words: str
) -> None:
    """A missing, empty or broken data file is named, with the line, and no process is left."""
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content)
    (tmp_path / "f.toml").write_text('[sites.a.data]\ntrain = ["rows.jsonl"]\n')
    code, _, err = fedward("up", "f.toml")
    assert code != 0
    assert words in err.replace("\n", "")
    assert existing(tmp_path / ".fedward") is None


@pytest.mark.parametrize("base", ["/no/such/model", "./empty"])
def test_a_missing_base_is_refused_before_it_is_submitted(tmp_path: Path, base: str) -> None:
    """A directory that is not there, or holds no model, is named with what belongs there."""
    (tmp_path / "empty").mkdir()
    file = tmp_path / "study.toml"
    file.write_text(f'name = "s"\n[model]\nbase = "{base}"\n')
    with pytest.raises(FedwardError, match=r"no such directory|no config\.json"):
        cli._with_absolute_base(load_study(file), file)


def test_without_a_federation_the_next_step_is_said(fedward, tmp_path: Path) -> None:
    """Commands that need a running federation name the command that starts one."""
    (tmp_path / "study.toml").write_text(f'name = "s"\n{STUDY}')
    for words in (("status",), ("stop", "x"), ("run", "study.toml"), ("doctor",)):
        code, _, err = fedward(*words)
        assert code == 2, words
        assert "fedward up" in err, words


@pytest.mark.parametrize("command", ["up", "down", "run", "status", "logs", "stop", "export",
                                     "doctor", "demo"])  # fmt: skip
def test_help_teaches(command: str) -> None:
    """Every verb has a help text of its own with its options."""
    result = typer.testing.CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert "--folder" in result.output


def test_an_unknown_option_is_no_traceback(fedward) -> None:
    """A mistyped option gets the usage line and exit code 2."""
    code, _, err = fedward("status", "--jsn")
    assert code == 2
    assert "No such option" in err


def test_federation_paths_are_from_the_file(tmp_path: Path) -> None:
    """Relative data paths in a federation.toml are relative to it, not to the working folder."""
    file = tmp_path / "federation.toml"
    file.write_text('[sites.a.data]\ntrain = ["rows.csv"]\n')
    assert load_federation(file).sites["a"].data.train == (tmp_path / "rows.csv",)


def test_a_restarted_federation_keeps_its_addresses_and_yields_taken_ports(tmp_path: Path) -> None:
    """Ports are the same at the next start, and a port that somebody took is replaced."""
    (tmp_path / "f.toml").write_text('[sites.a.data]\ntrain = ["rows.csv"]\n')
    settings = load_federation(tmp_path / "f.toml")
    first = prepare(tmp_path / "fed", settings)
    assert prepare(tmp_path / "fed", settings).ports == first.ports
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first.ports["fleet"]))
        taken.listen()
        second = prepare(tmp_path / "fed", settings)
    assert second.ports["fleet"] != first.ports["fleet"]
    assert second.ports["private"] == first.ports["private"]
    assert existing(tmp_path / "fed") == second


def test_keys_are_private(tmp_path: Path) -> None:
    """No key, token or settings file of a federation is readable by another user."""
    (tmp_path / "f.toml").write_text('[sites.a.data]\ntrain = ["rows.csv"]\n')
    folder = prepare(tmp_path / "fed", load_federation(tmp_path / "f.toml")).layout.folder
    keys = [path for path in folder.rglob("*") if path.suffix in {".key", ".pem", ".toml"}]
    private = [path for path in keys if "PRIVATE" in path.read_text() or path.suffix == ".toml"]
    assert len(private) > 5
    assert not [path for path in private if path.stat().st_mode & 0o077]
