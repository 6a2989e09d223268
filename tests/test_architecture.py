"""Rules of the house that import-linter cannot see; the floors are in pyproject.toml."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKERS = {"cli.py", "lead.py", "distributed.py"}  # they make a run, or run one for several processes


def imported(path: Path, module: str) -> set[str]:
    tree = ast.parse(path.read_text())
    froms = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == module)
    return {alias.name for node in froms for alias in node.names}


@pytest.mark.parametrize(("module", "name"), [("compress.config", "Config"), ("compress.run", "Run")])
def test_only_stages_know_the_whole_configuration_and_the_run(module: str, name: str) -> None:
    files = [path for path in (ROOT / "compress").rglob("*.py") if name in imported(path, module)]
    assert [str(path) for path in files if path.name != "stage.py" and path.name not in MAKERS] == []


@pytest.mark.parametrize("package", ["compress", "calibration", "benchmarks"])
def test_tests_mirror_the_tree(package: str) -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests" / package).rglob("test_*.py")}
    assert [str(folder) for folder in folders if not (ROOT / folder).is_dir()] == []
