"""The product's source, parsed once: what the house rules are checked against."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("prompts", "gateway", "evals", "rlhf", "pipelines", "deploy")  # lowest first
GENERATED = ("deploy/migrations/versions",)


@dataclass(frozen=True)
class Module:
    """One file. `name` is dotted, `path` relative to the repository."""

    name: str
    path: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name.split(".")[0]


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the packages, in order of its path."""
    found = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            text = file.read_text()
            found.append(Module(name, path, text, ast.parse(text, filename=path)))
    return tuple(found)


def imports(tree: ast.AST, name: str, is_package: bool) -> list[tuple[str, int]]:
    """Full names that are imported anywhere below `tree`, with their lines."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, name, is_package)
            found += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    return found


def _base(node: ast.ImportFrom, name: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    kept = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*kept, *([node.module] if node.module else [])])


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]
