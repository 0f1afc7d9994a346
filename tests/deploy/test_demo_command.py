"""`llmops demo` as a person calls it, on a scripted stack."""

import signal
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.commands import demo
from deploy.demo.desk import Counter
from deploy.demo.stage import RUNNING, LoopFailed
from tests.deploy.scripted_loop import ScriptedLoop, gateway_for, served

Play = Callable[..., Result]


@dataclass
class Stack:
    loop: ScriptedLoop
    counter: Counter


@pytest.fixture
def loop() -> Iterator[ScriptedLoop]:
    with served(gateway_for([4, 5], delay=0.02)) as gateway:
        yield ScriptedLoop(gateway)


@pytest.fixture
def play(loop: ScriptedLoop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Play:
    """Calls the command where the scripted loop is what is installed."""

    @contextmanager
    def installed(_settings: object) -> Iterator[Stack]:
        yield Stack(loop, Counter(loop.gateway.url, "sk", "extractor"))

    stand_in = types.ModuleType("deploy.demo.installed")
    stand_in.__dict__["installed"] = installed
    monkeypatch.setitem(sys.modules, "deploy.demo.installed", stand_in)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    env = {"LLMOPS_HOME": str(tmp_path)}
    return lambda *arguments: CliRunner().invoke(demo.app, [*arguments], env=env)


def test_a_demo_that_comes_out_writes_its_page(play: Play, tmp_path: Path):
    page = tmp_path / "demo.md"
    result = play("--quick", "--seed", "4", "--out", str(page))
    assert result.exit_code == 0, result.output
    assert "Fixed before the first request" in result.output.split("1. Before")[0]
    assert "Summary" in result.output and "expectations were met" in result.output
    assert "`llmops demo --seed 4 --quick`" in page.read_text()
    assert page.with_name("demo-drill.svg").exists()


def test_a_demo_that_does_not_come_out_says_so(play: Play, loop: ScriptedLoop):
    loop.reckless = True
    result = play("--quick", "--seed", "4")
    assert result.exit_code == 1
    assert "Not as expected: nothing is promoted" in " ".join(result.output.split())


def test_it_begins_with_the_base_model_or_not_at_all(play: Play, loop: ScriptedLoop):
    loop._crown(loop._register(0.9)[0])
    refused = play("--quick", "--seed", "4")
    assert refused.exit_code == 1 and "--reset" in refused.output
    assert not loop.gateway.rows
    result = play("--quick", "--seed", "4", "--reset")
    assert result.exit_code == 0, result.output
    assert "rolled back" in result.output


def test_what_stands_in_the_way_is_said_before_anything_runs(play: Play, loop: ScriptedLoop):
    loop.problems = lambda: ["the controller is away: start it"]  # type: ignore[method-assign]
    result = play("--reset")
    assert result.exit_code == 1 and "the controller is away" in result.output
    assert not loop.gateway.rows


def test_a_stack_that_fails_in_the_middle_is_told(play: Play, loop: ScriptedLoop):
    def broken(order: object, show: object) -> None:
        raise LoopFailed("MLflow is away")

    loop.train = broken  # type: ignore[method-assign, assignment]
    result = play("--quick", "--seed", "4")
    assert result.exit_code == 1
    assert "It ended early: MLflow is away" in result.output


def test_ctrl_c_leaves_no_experiment(play: Play, loop: ScriptedLoop):
    loop.interrupt_after = 1
    result = play("--quick", "--seed", "4")
    assert result.exit_code == 130 and "the champion stays" in result.output
    assert loop.trials and not [one for one in loop.trials.values() if one.state == RUNNING]


def test_a_study_over_seeds(play: Play, loop: ScriptedLoop, tmp_path: Path):
    page = tmp_path / "study.md"
    result = play("study", "--quick", "--seeds", "4,5", "--out", str(page))
    assert result.exit_code == 0, result.output
    assert "pooled" in page.read_text()
    loop.gain = 0.2
    assert play("study", "--quick", "--seeds", "4,5").exit_code == 1


@pytest.mark.parametrize("seeds", ["", "a", "1,1", "-1", ",".join(map(str, range(21)))])
def test_seeds_that_are_none(play: Play, seeds: str):
    result = play("study", "--seeds", seeds)
    assert result.exit_code == 2 and "--seeds" in result.output
