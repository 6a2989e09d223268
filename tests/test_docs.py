"""The documentation: generated pages are current, links lead somewhere, commands are ones that their programs take."""

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from cyclopts import App, CycloptsError
from markdown_it import MarkdownIt

from benchmarks.cli import spelled_out

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_PLACEHOLDERS = {
    "NAME": "ort-x86",
    "CHECK": "overhead",
    "N": "2",
    "STAGE": "baseline",
    "COMMAND": "latency",
    "benchmarks.COMMAND": "benchmarks.latency",
    "SECTION.KEY=VALUE": "prune.macs=40%",
}
_CHANGELOG = ROOT / "CHANGELOG.md"  # of all versions, also of those whose commands had other flags


def generator() -> object:
    """docs/reference/generate.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/reference/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_generate"] = module
    spec.loader.exec_module(module)
    return module


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    tokens = MarkdownIt().parse(page.read_text())
    return {slug(after.content) for token, after in pairwise(tokens) if token.type == "heading_open"}


def links(page: Path) -> Iterator[str]:
    """Where the links and pictures of a page lead."""
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield str(target)


def commands(page: Path) -> Iterator[list[str]]:
    """The command lines that a page shows; within text a command may stand alone, as its name.

    Those with ``...`` are only hinted at.
    """
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        if token.type == "fence" and token.info.strip() in ("", "sh", "bash", "console"):
            yield from lines(token.content)
        for child in token.children or ():
            if child.type == "code_inline":
                yield from ([*words, "--help"] if is_name(words) else words for words in lines(child.content))


def is_name(words: list[str]) -> bool:
    """Whether this is a command without what it is to work on."""
    return (len(words) == 2 and words[0] == "resnet-compress") or (len(words) == 3 and words[:2] == ["python", "-m"])


def lines(text: str) -> Iterator[list[str]]:
    """The words of each command in a block: comments, prompts and variables done with as a shell does."""
    variables: dict[str, list[str]] = {}
    waiting = ""
    for line in text.replace("\\\n", " ").splitlines():
        waiting = f"{waiting}\n{line}" if waiting else line
        try:
            words = shlex.split(waiting.removeprefix("$ "), comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        waiting = ""
        if words and re.fullmatch(r"[A-Z]+=.*", words[0], re.DOTALL) and len(words) == 1:
            name, _, value = words[0].partition("=")
            variables[f"${name}"] = value.split()
        elif "..." not in line and words:
            yield [part for word in words for part in variables.get(word, [word])]


def program(words: list[str]) -> tuple[App, list[str]] | None:
    """The parser of a command line of ours, and the words that are for it."""
    words = [_PLACEHOLDERS.get(word, word) for word in words]
    while words and "=" in words[0] and not words[0].startswith("-"):  # environment variables
        words = words[1:]
    if words[:1] == ["torchrun"]:
        words = ["python", *words[words.index("-m") :]]
    if words[:1] == ["resnet-compress"]:
        return importlib.import_module("benchmarks.__main__").app, words[1:]
    if words[:2] == ["python", "-m"] and words[2:] and words[2].split(".")[0] in ("compress", "benchmarks"):
        name = {"compress": "compress.cli"}.get(words[2], words[2])
        found: App = importlib.import_module(name).app
        return found, words[3:]
    return None


def shown(first: str) -> list[tuple[Path, list[str]]]:
    return [(page, words) for page in PAGES if page != _CHANGELOG for words in commands(page) if first in words[:1]]


def test_generated_pages_and_tables_are_current() -> None:
    stale = generator().stale()  # type: ignore[attr-defined]
    assert not stale, "run: python docs/reference/generate.py"


def test_the_commands_are_found() -> None:
    text = '$ A="--set a.b=1\n  --set c.d=2"\npython -m compress prune $A \\\n   --force  # why\nlatency ...\n'
    assert list(lines(text)) == [["python", "-m", "compress", "prune", "--set", "a.b=1", "--set", "c.d=2", "--force"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [p for p in PAGES if p != _CHANGELOG], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_ones_that_their_programs_take(page: Path) -> None:
    for words in commands(page):
        ours = program(words)
        if ours is None:
            continue
        app, arguments = ours
        try:
            app.parse_args(spelled_out(arguments), exit_on_error=False, print_error=False)
        except CycloptsError as error:
            pytest.fail(f"{shlex.join(words)}: {error!r}")


def test_make_targets_are_there() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page, words in shown("make"):
        targets = [word for word in words[1:] if "=" not in word]
        assert set(targets) <= known, f"{page.name}: {shlex.join(words)}"
