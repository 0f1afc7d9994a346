"""Exact pins: all that the build file asks for is in the constraints, and nothing is loose."""

import re
import tomllib

from tests.house.source import ROOT

PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)")


def _pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        match = PIN.fullmatch(line)
        assert match, f"{file}: {line!r} is not an exact pin without a local version"
        found[match[1].lower().replace("_", "-")] = match[2]
    return found


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(one for extra in extras for one in extra)]
    names = {re.split(r"[\[<>=; ]", one)[0].lower() for one in wanted} - {"llmops"}
    assert not names - set(_pins("constraints.txt"))


def test_no_accelerator_packages_are_forced():
    for file in ("constraints.txt", "constraints-engine.txt"):
        assert not [name for name in _pins(file) if name.startswith(("nvidia", "triton"))]


def test_the_core_is_light():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[\[<>=; ]", one)[0].lower() for one in project["dependencies"]}
    assert not names & {"torch", "mlflow", "litellm", "deltalake", "feast", "transformers"}
