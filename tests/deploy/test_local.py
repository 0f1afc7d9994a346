"""The stack comes up whole or not at all, and goes down without a trace. Real supervisord."""

import os
import signal
import socket
import sys
import threading
import urllib.request
from pathlib import Path

import psutil
import pytest

from deploy.keeper import KeeperError
from deploy.local import StackError
from deploy.parts import Part, Preparation, Requirement
from deploy.startup import StartupFailed
from deploy.uptime import intervals, read_signs
from tests.deploy.scripted_parts import ScriptedStack, script, server, until


def _get(part: Part) -> str:
    with urllib.request.urlopen(part.check, timeout=5) as answer:
        return str(answer.read(), "utf-8")


def test_parts_start_in_order_and_stop_without_a_trace(stack: ScriptedStack):
    first = server("first", delay=0.5)
    second = server("second", needs=["first"])
    alone = server("alone")
    stack.up(first, second, alone)
    order = stack.seen
    assert order.index(("first", "ready")) < order.index(("second", "starting"))
    assert order.index(("alone", "starting")) < order.index(("first", "ready"))
    assert "warming up" in stack.notes
    assert [_get(part) for part in (first, second, alone)] == ["first", "second", "alone"]
    assert stack.down() >= 5  # three parts, the keeper and its listener
    assert not stack.left()
    assert not stack.keeper.running()


def test_copies_share_a_port_and_run_apart(stack: ScriptedStack):
    port = server("x").address
    assert port is not None
    code = (
        "import socket,time,os\n"
        "s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        f"s.bind(('127.0.0.1',{port[1]})); s.listen(); time.sleep(300)"
    )
    stack.up(script("many", code, copies=3, check=f"tcp://127.0.0.1:{port[1]}", address=port))
    states = {state.name: state.pid for state in stack.keeper.states()}
    assert sorted(states) == ["many-0", "many-1", "many-2"]
    assert len(set(states.values())) == 3


def test_a_part_that_dies_is_restarted(stack: ScriptedStack):
    part = server("server")
    stack.up(part)
    before = stack.pid("server")
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{part.check}die", timeout=5)
    until(lambda: stack.pid("server") not in (0, before))
    until(lambda: not _refused(part))
    until(lambda: len(list(read_signs(stack.keeper.run_dir))) >= 3)
    signs = [(sign.part, sign.event) for sign in read_signs(stack.keeper.run_dir)]
    assert signs[:3] == [("server", "started"), ("server", "stopped"), ("server", "started")]


def _refused(part: Part) -> bool:
    try:
        _get(part)
    except OSError:
        return True
    return False


def test_children_do_not_outlive_a_part_that_is_killed(stack: ScriptedStack, tmp_path: Path):
    child = tmp_path / "child"
    stack.up(server("server", child=child))
    pid = int(child.read_text())
    assert psutil.pid_exists(pid)
    os.kill(stack.pid("server"), signal.SIGKILL)
    until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_part_that_cannot_start_is_named_and_nothing_stays(stack: ScriptedStack):
    good = server("good")
    bad = script("bad", "print('the disk is on fire'); raise SystemExit(1)", needs=("good",))
    bad_check = Part(**{**_fields(bad), "check": "tcp://127.0.0.1:1"})
    with pytest.raises(StartupFailed) as failure:
        stack.up(good, bad_check)
    assert failure.value.part == "bad"
    assert "the disk is on fire" in failure.value.tail
    assert not stack.left()
    assert _refused(good)


def _fields(part: Part) -> dict:
    return {name: getattr(part, name) for name in Part.__dataclass_fields__}


def test_a_part_that_is_never_healthy_is_named(stack: ScriptedStack):
    part = script(
        "slow",
        "import time; print('still thinking', flush=True); time.sleep(60)",
        check="tcp://127.0.0.1:1",
        start_seconds=1,
    )
    with pytest.raises(StartupFailed, match="slow could not be started: not healthy after 1 s"):
        stack.up(part)
    assert "still thinking" in stack.notes
    assert not stack.left()


def test_a_program_that_does_not_exist(stack: ScriptedStack):
    with pytest.raises(StartupFailed, match="ghost could not be started"):
        stack.up(Part(name="ghost", command=("/no/such/program",)))
    assert not stack.left()


def test_an_earlier_part_that_dies_meanwhile_ends_the_start(stack: ScriptedStack):
    brief = script("brief", "import time; print('out of luck', flush=True); time.sleep(0.5)")
    late = server("late", delay=10, needs=["brief"])
    with pytest.raises(StartupFailed, match="brief"):
        stack.up(brief, late)
    assert not stack.left()


def test_a_taken_port_is_named_and_nothing_is_started(stack: ScriptedStack):
    part = server("server")
    assert part.address is not None
    taken = rf"server: port {part.address[1]} .* in use"
    with socket.create_server(part.address), pytest.raises(StackError, match=taken):
        stack.up(part)
    assert not stack.left()
    assert not stack.keeper.running()


def test_two_parts_with_one_port(stack: ScriptedStack):
    part = server("one")
    other = Part(**{**_fields(part), "name": "two"})
    with pytest.raises(StackError, match=r"two: port .* is one's as well"):
        stack.up(part, other)


def test_a_missing_package_and_too_little_memory_are_all_named(stack: ScriptedStack):
    part = script(
        "greedy",
        "",
        memory_mb=10**9,
        requires=(
            Requirement("no_such_module", "pip install no-such-module"),
            Requirement("a file", "make it", Path("/no/such/file")),
        ),
    )
    with pytest.raises(StackError) as error:
        stack.up(part)
    text = str(error.value)
    assert "greedy: no_such_module is not installed; pip install no-such-module" in text
    assert "greedy: a file is not installed; make it" in text
    assert "memory: 1000000000 MB wanted" in text
    assert not stack.left()


def test_a_second_up_is_refused_and_harms_nothing(stack: ScriptedStack):
    part = server("server")
    stack.up(part)
    with pytest.raises(StackError, match="is up already"):
        stack.up(server("other"))
    assert _get(part) == "server"


def test_two_starts_at_once(stack: ScriptedStack):
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        go_on.wait(20)

    first = threading.Thread(target=stack.up, args=(server("server"),), kwargs={"before": wait})
    first.start()
    try:
        assert inside.wait(10)
        with pytest.raises(StackError, match="another llmops up"):
            stack.up(server("other"))
    finally:
        go_on.set()
        first.join(20)
    assert stack.keeper.running()


def test_down_after_the_keeper_was_killed(stack: ScriptedStack, tmp_path: Path):
    child = tmp_path / "child"
    part = server("server", child=child)
    stack.up(part)
    grandchild = int(child.read_text())  # it has no mark in its environment
    keeper = int((stack.keeper.run_dir / "keeper.pid").read_text())
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not stack.keeper.running())
    with pytest.raises(StackError, match=r"keeper of the stack .* was killed .* llmops down"):
        stack.up(part)
    assert stack.down() >= 2
    assert not stack.left()
    assert not _runs(grandchild)
    stack.up(part)  # and the next start is none the worse
    assert _get(part) == "server"


def test_stale_files_alone_do_not_matter(stack: ScriptedStack):
    part = server("server")
    stack.up(part)
    for process in stack.left():
        process.kill()
    until(lambda: not stack.left())
    stack.up(part)
    assert _get(part) == "server"


def test_an_error_before_the_parts_stops_the_keeper(stack: ScriptedStack):
    def fail() -> None:
        raise RuntimeError("no database")

    with pytest.raises(RuntimeError, match="no database"):
        stack.up(server("server"), before=fail)
    assert not stack.left()


def test_down_with_nothing_up(stack: ScriptedStack):
    assert stack.down() == 0


def test_a_stubborn_part_is_killed(stack: ScriptedStack):
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\n"
        "time.sleep(300)"
    )
    stack.up(script("deaf", code, stop_seconds=1), server("server", delay=0.5))
    stack.down()
    assert not stack.left()


def test_preparation_is_shown_and_its_failure_named(stack: ScriptedStack, tmp_path: Path):
    done = tmp_path / "model"
    code = (
        "import json, pathlib, time\n"
        "print(json.dumps({'percent': 40, 'what': 'melting'}), flush=True); time.sleep(0.4)\n"
        f"pathlib.Path({str(done)!r}).mkdir()"
    )
    good = Preparation("melting it", (sys.executable, "-c", code), done)
    part = server("server")
    stack.up(Part(**{**_fields(part), "preparation": good}))
    assert "melting" in stack.notes
    assert ("server", "preparing") in stack.seen
    stack.down()
    code = "import json; print(json.dumps({'error': 'no weights'})); raise SystemExit(1)"
    bad = Preparation("melting it", (sys.executable, "-c", code), tmp_path / "other")
    with pytest.raises(StartupFailed, match="server could not be started: no weights"):
        stack.up(Part(**{**_fields(part), "preparation": bad}))
    assert not stack.left()


def test_uptime_is_on_record(stack: ScriptedStack):
    stack.up(server("server"))
    stack.down()
    found = intervals(read_signs(stack.keeper.run_dir))
    assert [interval.part for interval in found] == ["server"]
    assert found[0].end is not None and found[0].end > found[0].start


def test_a_home_with_a_long_path(tmp_path: Path):
    home = tmp_path / ("long" * 20) / ("longer" * 10)
    stack = ScriptedStack(home)
    try:
        stack.up(server("server"))
        assert stack.keeper.running()
    finally:
        stack.down()
    assert not stack.left()


def test_a_keeper_that_is_gone_is_said_so(stack: ScriptedStack):
    with pytest.raises(KeeperError, match="the keeper is gone"):
        stack.keeper.states()
