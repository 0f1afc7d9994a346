"""Imports point one way: prompts < gateway < evals < rlhf < pipelines < deploy; no cycles."""

import ast
import graphlib

from tests.house.source import PACKAGES, Module, imports, modules


def _imports(module: Module, tree: ast.AST | None = None) -> list[tuple[str, int]]:
    is_package = module.path.endswith("__init__.py")
    return imports(tree or module.tree, module.name, is_package)


def test_an_import_never_points_up():
    wrong = [
        f"{module.path}:{line} imports {name}"
        for module in modules()
        for name, line in _imports(module)
        if name.split(".")[0] in PACKAGES
        and PACKAGES.index(name.split(".")[0]) > PACKAGES.index(module.package)
    ]
    assert not wrong


def test_no_import_cycle():
    names = {module.name for module in modules()}
    graph = {}
    for module in modules():
        targets = set()
        for node in module.tree.body:  # at module level: an import inside a function is lazy
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name, _ in _imports(module, ast.Module([node], [])):
                    parent = name.rsplit(".", 1)[0]
                    targets.add(name if name in names else parent)
        graph[module.name] = (targets & names) - {module.name}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_tests_are_not_imported():
    wrong = [
        f"{module.path}:{line}"
        for module in modules()
        for name, line in _imports(module)
        if name.split(".")[0] == "tests"
    ]
    assert not wrong


def test_litellm_is_imported_in_one_file():
    users = {
        module.path
        for module in modules()
        for name, _ in _imports(module)
        if name.split(".")[0] == "litellm"
    }
    assert users <= {"gateway/litellm_server.py"}
