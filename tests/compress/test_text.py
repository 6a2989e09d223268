"""Names that come from files are shown as they are: no markup, no commands for a terminal, no failure to encode."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from benchmarks.results.tables import literal, markdown, show
from calibration.datasets import listing
from calibration.names import printable, readable, readable_names
from compress.commands import run_command
from compress.console import Console
from compress.errors import PipelineError
from compress.progress import Terminal

ROOT = Path(__file__).parents[2]
LATIN = os.fsdecode(b"caf\xe9")  # a name of a file that is not UTF-8
MARKUP = ("dog [brown]", "[/dog]", "[bold]x[/bold]", "[link=http://x]y[/link]", ":warning:", "\\[a]")
NAMES = (*MARKUP, "a | b", "{x}", "%s")
ESC = "\x1b]0;title\x07\x1b[2J\r"
MARKED = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")  # what rich itself sends to a terminal


def terminal() -> tuple[Console, io.StringIO]:
    """A console that believes to be a wide terminal, and what it is sent."""
    sent = io.StringIO()
    return Console(file=sent, force_terminal=True, width=200, color_system=None), sent


@pytest.mark.parametrize("name", NAMES)
def test_a_console_shows_text_as_it_is(name: str) -> None:
    console, sent = terminal()
    console.print(name)
    show(console, name, [name, "ms"], [[f"{name}!", "1.0"]])
    shown = MARKED.sub("", sent.getvalue())
    assert shown.startswith(f"{name}\n")
    assert shown.count(name) == 4
    assert f"{name}!" in shown


@pytest.mark.parametrize("name", NAMES)
def test_a_bar_shows_what_it_counts_as_it_is(name: str) -> None:
    console, sent = terminal()
    assert list(Terminal(console).track([1, 2], name)) == [1, 2]
    Terminal(console).note(name)
    assert MARKED.sub("", sent.getvalue()).count(name) >= 2


def test_names_cannot_command_a_terminal() -> None:
    console, sent = terminal()
    console.print(f"two\nlines {ESC}")
    show(console, ESC, [ESC], [[ESC], [f"a\nb{LATIN}"]])
    Terminal(console).note(ESC)
    list(Terminal(console).track([1], ESC))
    assert "\x1b]" not in sent.getvalue()
    assert "\x1b[2J" not in sent.getvalue()
    assert "\x07" not in sent.getvalue()
    assert r"\x1b]0;title\x07\x1b[2J\r" in sent.getvalue()
    assert "two\nlines" in sent.getvalue()
    assert r"a\nbcaf\xe9" in sent.getvalue()


@given(st.text(st.characters()))
def test_readable_is_one_line_that_every_file_can_hold(name: str) -> None:
    text = readable(name)
    assert text.splitlines() == ([text] if text else [])
    assert readable(text) == text
    assert text.encode().decode() == text
    assert all(character.isprintable() or ord(character) > 0x9F for character in text)
    assert printable(f"{name}\n{name}") == f"{printable(name)}\n{printable(name)}"


def test_names_that_read_alike_stay_apart() -> None:
    assert readable_names([LATIN, "b", r"caf\xe9", "caf\\xe9"]) == (r"caf\xe9", "b", r"caf\xe9 (2)", r"caf\xe9 (3)")
    assert readable_names(["dog", "chat é"]) == ("dog", "chat é")


def cells(table: str) -> list[str]:
    """The first cells of a Markdown table's rows, as a reader sees them; markup in one is an error."""
    parsed = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(table)
    assert [token.type for token in parsed].count("tr_open") == 2
    inline = [token.children or [] for token in parsed if token.type == "inline"]
    assert all(part.type == "text" for children in inline for part in children)
    return ["".join(part.content for part in children) for children in inline]


EVIL = (
    *NAMES,
    "<script>alert(1)</script>",
    "![x](http://y)",
    "[x](http://y)",
    "[x][y]",
    "`code`",
    "a\\|b",
    "&#39;&amp;",
    "*a* _b_ __c__ ~~d~~",
    "resnet18_int8.onnx",
    "a\nb",
    "\\",
    "<http://x.y>",
)


@pytest.mark.parametrize("name", EVIL)
def test_markdown_cells_are_text(name: str) -> None:
    ms = "5.5 [5.4, 5.6]"
    assert cells(markdown([name, "ms"], [[name, ms]])) == [readable(name), "ms", readable(name), ms]


@given(st.text(st.characters() | st.sampled_from("\\`*_[]<>&|~!()#-+.:;"), min_size=1))
def test_no_text_ends_a_cell_or_is_markup(name: str) -> None:
    shown, other, *_ = cells(markdown([f"x{name}x", "y"], [["", ""]]))
    assert (shown, other) == (readable(f"x{name}x"), "y")


@given(st.text(st.characters() | st.sampled_from("\\`*_[]<>&|~!()#-+.:;=0 "), min_size=1))
def test_no_text_begins_a_block(name: str) -> None:
    parsed = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"- {literal(name)}x\n")
    assert [token.type for token in parsed if token.type != "inline"] == [
        "bullet_list_open",
        "list_item_open",
        "paragraph_open",
        "paragraph_close",
        "list_item_close",
        "bullet_list_close",
    ]


def test_a_cell_stays_as_it_was_where_markdown_does_not_mind() -> None:
    row = ["dense_fp32.onnx", "5.51 [5.50, 5.60]"]
    assert f"| {' | '.join(row)} |" in markdown(["net", "ms"], [row])


def test_an_error_names_a_file_of_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise PipelineError(f"no [bold]{LATIN}{ESC} :warning:", remedy="rename it")

    assert run_command(fail) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == r"error: no [bold]caf\xe9\x1b]0;title\x07\x1b[2J\r :warning:"
    assert second == "  fix: rename it"


def test_a_folder_of_any_names_is_hashed(tmp_path: Path) -> None:
    (tmp_path / LATIN).mkdir()
    (tmp_path / LATIN / f"{LATIN}.png").write_bytes(b"1")
    before = listing(tmp_path)
    (tmp_path / LATIN / f"{LATIN}.png").rename(tmp_path / LATIN / os.fsdecode(b"caf\xe8.png"))
    assert listing(tmp_path) != before


ENCODINGS = [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


@pytest.mark.parametrize("environment", ENCODINGS)
def test_output_that_takes_ascii_only(tmp_path: Path, environment: dict[str, str]) -> None:
    program = (
        "import sys\n"
        "from benchmarks.results.tables import emit, show\n"
        "from compress.commands import run_command\n"
        "from compress.console import Console\n"
        "def command():\n"
        "    Console().print('table: caf\\udce9 \\xd7')\n"
        "    show(Console(), '\\xe9', ['caf\\udce9'], [['\\xd7']])\n"
        "    emit('caf\\udce9 \\xd7', '-')\n"
        "    raise FileNotFoundError(2, 'No such file \\xd7', 'caf\\udce9')\n"
        "sys.exit(run_command(command))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert rb"table: caf\xe9 \xd7" in done.stdout
    assert b"Traceback" not in done.stderr
    assert rb"caf\xe9" in done.stderr


@pytest.mark.parametrize("environment", [{}, ENCODINGS[1]])
def test_a_run_folder_of_any_name(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9 [red]"
    Path(os.fsdecode(folder)).mkdir()
    for command in (
        [b"compress", b"prune", b"--set", b"run.dir=" + folder],
        [b"benchmarks.compare", folder + b"/a.json", folder + b"/b.json"],
    ):
        line = [os.fsencode(sys.executable), b"-m", *command]
        done = subprocess.run(line, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, check=False)
        assert b"Traceback" not in done.stderr
        assert rb"caf\xe9 [red]" in done.stderr
        assert done.returncode in (1, 2)
