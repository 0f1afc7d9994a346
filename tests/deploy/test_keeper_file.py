"""The keeper's file says to supervisord exactly what the part says, or is refused."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from supervisor.options import ServerOptions

from deploy.keeper import KeeperError, keeper_file, part_environment
from deploy.parts import Part

WORD = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)


def read_back(text: str, folder: Path) -> ServerOptions:
    file = folder / "keeper.conf"
    file.write_text(text)
    options = ServerOptions()
    options.realize(["-c", str(file)])
    return options


@settings(max_examples=60, deadline=None)
@given(words=st.lists(WORD, min_size=1, max_size=4), value=WORD)
def test_commands_and_environments_arrive(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], value: str
):
    folder = tmp_path_factory.mktemp("keeper")
    (folder / "logs").mkdir()
    (folder / "run").mkdir()
    part = Part(name="part", command=("/bin/echo", *words), environment={"VALUE": value})
    try:
        text = keeper_file(folder, folder / "sock", [part])
    except KeeperError:
        assert any(mark in f" {word}" for word in [*words, value] for mark in (" ;", " #", "%"))
        return
    options = read_back(text, folder)
    group = next(one for one in options.process_group_configs if one.name == "part")
    program = group.process_configs[0]
    assert program.environment["LLMOPS_PART"] == "part"
    assert shlex.split(program.command) == [
        "/usr/bin/env", f"VALUE={value}", "/bin/echo", *words
    ]  # fmt: skip


def test_copies_have_logs_of_their_own(tmp_path: Path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "run").mkdir()
    text = keeper_file(tmp_path, tmp_path / "sock", [Part("many", ("/bin/true",), copies=2)])
    options = read_back(text, tmp_path)
    group = next(one for one in options.process_group_configs if one.name == "many")
    names = sorted(program.name for program in group.process_configs)
    logs = sorted(program.stdout_logfile for program in group.process_configs)
    assert names == ["many-0", "many-1"]
    assert logs == [str(tmp_path / "logs" / f"many-{number}.log") for number in (0, 1)]


def test_a_home_that_cannot_be_said_is_refused(tmp_path: Path):
    with pytest.raises(KeeperError, match="logfile has a line break, '%'"):
        keeper_file(tmp_path / "100% mine", tmp_path / "sock", [])


def test_a_line_break_is_refused(tmp_path: Path):
    with pytest.raises(KeeperError, match="command has a line break"):
        keeper_file(tmp_path, tmp_path / "sock", [Part("part", ("/bin/echo", "a\nb"))])


def test_every_part_knows_where_it_belongs(tmp_path: Path):
    environ = part_environment(tmp_path, tmp_path / "gateway.yaml", {"PATH": "/bin", "KEY": "x"})
    assert environ["LLMOPS_HOME"] == str(tmp_path)
    assert environ["LLMOPS_CONFIG"] == str(tmp_path / "gateway.yaml")
    assert environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    assert (environ["PATH"], environ["KEY"]) == ("/bin", "x")
