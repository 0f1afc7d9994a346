"""Files are named for what is in them, and the repository looks as it should."""

import ast
import subprocess

from tests.house.source import PACKAGES, ROOT, modules

BANNED = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "tools", "stuff"}
CODE_FOLDERS = {*PACKAGES, "feature_repo", "tests"}


def test_no_banned_names():
    wrong = [
        module.path
        for module in modules()
        if BANNED & set(module.path.removesuffix(".py").replace("/", "_").split("_"))
    ]
    assert not wrong


def test_every_module_says_what_it_is_for():
    silent = [module.path for module in modules() if not ast.get_docstring(module.tree)]
    assert not silent


def test_code_stands_in_the_agreed_folders():
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    folders = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert folders <= CODE_FOLDERS
