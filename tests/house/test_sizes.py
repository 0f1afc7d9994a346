"""Size budgets: a wish for small files without a gate decays. (mccabe and arguments: ruff.)"""

import ast

from tests.house.source import GENERATED, functions, modules

FILE_LINES = 400
FUNCTION_LINES = 50
ARGUMENTS = 6
BROAD_EXCEPTS = 1


def test_files_are_short():
    long = [
        f"{module.path}: {len(module.text.splitlines())} lines"
        for module in modules()
        if not module.path.startswith(GENERATED) and len(module.text.splitlines()) > FILE_LINES
    ]
    assert not long


def test_functions_are_short():
    long = [
        f"{module.path}:{function.lineno} {function.name}: {length} lines"
        for module in modules()
        if not module.path.startswith(GENERATED)
        for function in functions(module.tree)
        if (length := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
    ]
    assert not long


def test_functions_take_few_arguments():
    many = []
    for module in modules():
        if module.path.startswith("deploy/commands/"):
            continue  # there the arguments are the options of a command
        for function in functions(module.tree):
            arguments = function.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            count = len([one for one in named if one.arg not in ("self", "cls")])
            if count > ARGUMENTS:
                many.append(f"{module.path}:{function.lineno} {function.name}: {count}")
    assert not many


def test_broad_excepts_that_swallow_are_rare():
    """One that ends in a bare `raise` lets everything pass."""
    broad = [
        f"{module.path}:{node.lineno}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
        )
        and not (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)
    ]
    assert len(broad) <= BROAD_EXCEPTS, broad
