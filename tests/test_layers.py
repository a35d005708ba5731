"""Who may import whom: one dictionary and one walk over the source."""

import ast
from pathlib import Path

from tests.conftest import ROOT

SOURCE = ROOT / "src" / "alignlab"
ANYONE = {"errors", "types", "paths", "skipping", "whole"}
# a part of the package -> the parts that it may import beside itself and ANYONE; what is not listed may import all
MAY_IMPORT = {
    "rows": set(),
    "products": set(),
    "models": {"products"},
    "losses": {"products"},
    "batch": set(),
    "memory": set(),
    "ranks": set(),
    "text": set(),
    "optim": set(),
    "metrics": {"directions", "text"},
    "checkpoint": set(),
    "generate": {"models", "products"},
    "data": {"text", "batch"},
    "tasks": {
        "models",
        "generate",
        "losses",
        "policy_losses",
        "preference_losses",
        "metrics",
        "rewards",
        "optim",
        "batch",
        "text",
        "ranks",
    },
    "policy_losses": set(),
    "preference_losses": set(),
    "tuning": {"models", "tasks", "optim", "checkpoint", "text"},
    "explain": {"models", "tasks", "losses", "batch", "text"},
    "callbacks": {
        "explain",
        "tasks",
        "batch",
        "generate",
        "models",
        "checkpoint",
        "metrics",
        "tuning",
        "data",
        "text",
        "ranks",
    },
    "commandline": set(),
}
COMPOSERS = {"plan", "sweep", "build", "run", "launch", "stages", "trainer", "cli", "child"}


def part(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Parts of the package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if isinstance(node, ast.ImportFrom) and node.module == "alignlab":
            names = [f"alignlab.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name and name.startswith("alignlab.")}
    return found


def test_who_imports_whom() -> None:
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        own = part(path)
        if own in MAY_IMPORT:
            wrong += [
                f"{path.relative_to(SOURCE)} imports {name}"
                for name in imported(path) - MAY_IMPORT[own] - ANYONE - {own}
            ]
    assert wrong == []


def test_nothing_below_composes() -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        if part(path) in MAY_IMPORT:
            assert not imported(path) & COMPOSERS, path


def test_only_the_top_knows_hydra() -> None:
    inputs = {
        "plan",
        "sweep",
        "build",
        "commandline",
        "stages",
        "trainer",
        "run",
        "launch",
        "folders",
        "errors",
        "cli",
        "child",
    }
    may = inputs | {"export", "origin", "model", "answers", "card"}
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if part(path) not in may:
            assert "import hydra" not in text, path
            assert "from hydra" not in text, path
