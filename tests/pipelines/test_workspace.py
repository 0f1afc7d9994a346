import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from gateway.settings import load_settings
from pipelines.datasets import TRAIN
from pipelines.manifest import read_manifest
from pipelines.workspace import (
    FOLDERS,
    StageFailed,
    Workspace,
    WorkspaceBusy,
    WorkspaceError,
)
from tests.pipelines.stage_script import ROOT, StageScript

SPEC = {
    "name": "extractor",
    "kind": "llm",
    "alias": "extractor",
    "dataset": {"minimum": 2},
    "training": {"base_model": "tiny", "rank": 8},
    "evaluation": {"cases": "extraction.jsonl"},
    "gate": [],
    "experiment": {"share": 0.5},
    "approval": "automatic",
}
ALL = tuple(FOLDERS)
RUN = """
import sys
from pathlib import Path
from gateway.settings import load_settings
from pipelines.workspace import Workspace
workspace = Workspace(load_settings(), "extractor")
workspace.prepare(Path(sys.argv[1]).read_text())
workspace.reproduce(None, lambda line: print(line, flush=True))
"""


def spec(**changes) -> str:
    return yaml.safe_dump(SPEC | changes)


@pytest.fixture
def script(tmp_path: Path) -> StageScript:
    return StageScript(tmp_path)


@pytest.fixture
def workspace(script: StageScript) -> Workspace:
    made = Workspace(script.settings, "extractor")
    made.prepare(spec())
    return made


@pytest.mark.slow
def test_stages_run_in_order_and_only_where_something_changed(workspace, script):
    lines: list[str] = []
    first = workspace.reproduce(None, lines.append)
    assert first.ran == ALL == tuple(script.calls)
    assert '{"percent": 0, "what": "train"}' in lines
    assert json.loads((first.folders["register"] / "version.json").read_text())["spec"] == spec()
    assert workspace.reproduce(None).ran == ("preprocess",)

    def ran_after(given: str, **facts: dict[str, str]):
        workspace.prepare(given, facts)
        return workspace.reproduce(None).ran[1:]

    met, based = {"champion": "3"}, {"base_digest": "other weights"}
    assert ran_after(spec(experiment={"share": 0.1})) == ("experiment",)
    assert ran_after(spec(gate=["stricter"])) == ("gate",)
    assert ran_after(spec(gate=["stricter"]), evaluate=met) == ("evaluate",)
    assert ran_after(spec(gate=["stricter"], training={"rank": 4}), evaluate=met) == ("train",)
    script.say(examples=31)
    assert ran_after(spec()) == ALL[1:]
    assert ran_after(spec(), train=based) == ("train",)
    script.say(examples=30, dropped=4)
    assert ran_after(spec()) == ("features",)  # the first data again: the rest is in the cache


def test_going_stage_by_stage_rests_on_one_data_set(workspace, script):
    for stage in ALL[:2]:
        workspace.reproduce(stage)
    before = read_manifest(workspace.folder / "dataset")
    script.say(examples=60)  # feedback comes in meanwhile
    for stage in ALL[2:]:
        assert workspace.reproduce(stage).ran == (stage,)
    assert script.calls == list(ALL)
    assert read_manifest(workspace.folder / "dataset") == before
    assert workspace.reproduce("train").ran == ()
    assert workspace.reproduce("train", force=True).ran == ("train",)
    with pytest.raises(ValueError, match="no stage 'deploy'"):
        workspace.reproduce("deploy")


def test_a_failed_stage_says_why_in_its_own_words(workspace, script):
    script.say(examples=30, fail="train")
    with pytest.raises(StageFailed, match=r"^stage train failed: train was told to fail$") as error:
        workspace.reproduce(None)
    assert error.value.stage == "train"
    script.say(examples=30, crash="evaluate")
    with pytest.raises(StageFailed, match="LookupError: evaluate crashed"):
        workspace.reproduce(None)
    script.say(examples=1)
    with pytest.raises(StageFailed, match=r"stage features failed: (?s:.)*1 examples of 1 users"):
        workspace.reproduce(None)
    script.say(examples=30)
    assert workspace.reproduce(None).ran == ("preprocess", *ALL[3:])
    assert script.calls.count("train") == 2


def test_a_former_data_set_can_be_fetched_again(workspace, script):
    workspace.reproduce(None)
    first = read_manifest(workspace.folder / "dataset")
    bytes_then = (workspace.folder / "dataset" / TRAIN).read_bytes()
    workspace.push()
    script.say(examples=50)
    for stage in ALL[:2]:
        workspace.reproduce(stage)
    second = read_manifest(workspace.folder / "dataset")
    lock = workspace.lock
    assert second.dataset_id != first.dataset_id
    fetched = workspace.checkout(first.dataset_id)
    assert (fetched / TRAIN).read_bytes() == bytes_then
    assert workspace.lock == lock
    assert read_manifest(workspace.folder / "dataset") == second

    (fetched / TRAIN).write_text("somebody edited it")
    shutil.rmtree(workspace.folder / ".dvc" / "cache")
    assert (workspace.checkout(first.dataset_id) / TRAIN).read_bytes() == bytes_then
    with pytest.raises(WorkspaceError, match="pull"):  # it was never pushed
        workspace.checkout(second.dataset_id)
    with pytest.raises(WorkspaceError, match="no data set 'ffff' of extractor"):
        workspace.checkout("ffff")

    shutil.rmtree(workspace.folder)
    assert (workspace.checkout(first.dataset_id) / TRAIN).read_bytes() == bytes_then


def test_the_remote_gets_every_stage_and_a_second_push_nothing(workspace):
    workspace.push()
    workspace.reproduce(None)
    workspace.push()
    kept = {path: path.stat().st_mtime_ns for path in Path(workspace.remote.url).rglob("*")}
    shutil.rmtree(workspace.folder / ".dvc" / "cache")
    for folder in FOLDERS.values():
        shutil.rmtree(workspace.folder / folder)
    pulled = subprocess.run(
        [sys.executable, "-m", "dvc", "pull", "--quiet"], cwd=workspace.folder, check=False
    )
    assert pulled.returncode == 0
    assert (workspace.folder / "version" / "version.json").exists()
    workspace.push()
    assert kept == {path: path.stat().st_mtime_ns for path in Path(workspace.remote.url).rglob("*")}


@pytest.fixture
def run(script: StageScript, tmp_path: Path):
    """Starts a run as a process group of its own; all of them are killed at the end."""
    (tmp_path / "spec.yaml").write_text(spec())
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path / "spec.yaml")],
            env=dict(script.settings.environ),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a part may live on
        process.communicate()


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps(workspace: Workspace) -> int:
    return len(list((workspace.folder / "training.checkpoints").glob("step-*")))


def test_a_killed_run_is_taken_up_where_it_was(script, run):
    workspace = Workspace(script.settings, "extractor")
    script.say(examples=30, steps=200, step_seconds=0.05)
    killed = run()
    wait_until(lambda: steps(workspace) >= 3)
    with pytest.raises(WorkspaceBusy, match="a run of extractor is under way"):
        workspace.reproduce("train")
    with pytest.raises(WorkspaceBusy):
        workspace.prepare(spec(training={"rank": 1}))
    group = [killed.pid, *(one.pid for one in psutil.Process(killed.pid).children(recursive=True))]
    assert len(group) >= 3
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    wait_until(lambda: not any(_lives(pid) for pid in group))
    assert (workspace.folder / ".dvc" / "tmp" / "rwlock").read_text() != "{}"
    done = steps(workspace)

    script.say(examples=30, steps=done + 2)
    wait_until(lambda: _prepared(workspace))  # a child that was just born may hold its lock
    assert workspace.reproduce(None).ran == ("preprocess", *ALL[2:])
    trained = json.loads((workspace.folder / "training" / "training.json").read_text())
    assert trained["resumed_from"] == done >= 3


def _prepared(workspace: Workspace) -> bool:
    try:
        workspace.prepare(spec())
    except WorkspaceBusy:
        return False
    return True


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("victims", [("starter",), ("starter", "dvc")])
def test_while_a_part_of_a_killed_run_works_on_nobody_comes_between(script, run, victims):
    workspace = Workspace(script.settings, "extractor")
    script.say(examples=30, steps=1000, step_seconds=0.2)
    killed = run()
    wait_until(lambda: steps(workspace) >= 1)
    children = psutil.Process(killed.pid).children(recursive=True)
    (dvc,) = [one for one in children if "dvc" in one.cmdline()]
    (stage,) = [one for one in dvc.children(recursive=True) if "train" in one.cmdline()]
    stage.suspend()  # it would end by itself, as nobody reads what it prints
    for victim in victims:
        os.kill({"starter": killed.pid, "dvc": dvc.pid}[victim], signal.SIGKILL)
        killed.wait()
    message = f"under way (process {stage.pid})"
    wait_until(lambda: message in refusal(workspace))  # a killed process' threads take a moment
    os.killpg(killed.pid, signal.SIGKILL)
    wait_until(lambda: not any(_lives(one.pid) for one in children))
    script.say(examples=30)
    wait_until(lambda: is_free(workspace))  # the kernel closes a dead process' files in its time
    assert workspace.reproduce("train").ran == ("train",)


def is_free(workspace: Workspace) -> bool:
    try:
        workspace.prepare(spec())
    except WorkspaceBusy:
        return False
    return True


def refusal(workspace: Workspace) -> str:
    with pytest.raises(WorkspaceBusy) as refused:
        workspace.reproduce("train")
    return str(refused.value)


def test_what_a_kill_can_leave_half_written_blocks_nobody(workspace, script):
    workspace.reproduce(None)
    lock, rwlock = workspace.folder / "dvc.lock", workspace.folder / ".dvc" / "tmp" / "rwlock"
    whole = lock.read_text()
    mine = {"pid": os.getpid(), "cmd": "somebody else's process now"}
    held = {"write": {str(workspace.folder / "dataset"): mine}, "read": {}}
    script.forget()
    for locked in (json.dumps(held), '{"write": {"/some'):
        rwlock.write_text(locked)
        assert workspace.reproduce("preprocess").ran == ("preprocess",)
    for size in (0, len(whole) // 2):
        lock.write_text(whole[:size])
        (workspace.folder / ".dvc" / "under-way").touch()
        workspace.reproduce("train")
        assert workspace.lock == whole
    assert set(script.calls) == {"preprocess"}


def test_an_error_in_the_listener_stops_dvc_and_the_stage(workspace, script):
    script.say(examples=30, steps=1000, step_seconds=0.05)
    before = set(psutil.Process().children(recursive=True))

    def listen(line: str) -> None:
        if '"step"' in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.reproduce(None, listen)
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [one for one in left if _lives(one.pid)]
    script.say(examples=30)
    assert workspace.reproduce(None).ran == ("preprocess", *ALL[2:])


def test_no_network_is_reached_for(script, tmp_path):
    spy = """
import os, socket
def noted(name, plain):
    def call(*given, **named):
        with open(os.environ["SPIED"], "a") as file:
            file.write(f"{name} {given!r}\\n")
        return plain(*given, **named)
    return call
class Spied(socket.socket):
    def connect(self, *given):
        return noted("connect", super().connect)(*given)
    def connect_ex(self, *given):
        return noted("connect", super().connect_ex)(*given)
socket.socket = Spied
socket.getaddrinfo = noted("resolve", socket.getaddrinfo)
"""
    (script.home / "python" / "sitecustomize.py").write_text(spy)
    environ = dict(script.settings.environ) | {"SPIED": str(tmp_path / "spied")}
    workspace = Workspace(load_settings(environ | {"DVC_REMOTE": "x"}), "extractor")
    workspace.prepare(spec())
    workspace.reproduce(None)
    workspace.push()
    workspace.checkout(read_manifest(workspace.folder / "dataset").dataset_id)
    time.sleep(0.5)
    assert not (tmp_path / "spied").exists()
    script.say(examples=30, connect=9)  # the spy does see what there is
    workspace.reproduce("preprocess")
    assert "connect" in (tmp_path / "spied").read_text()


def test_in_a_git_repository_under_a_path_with_odd_letters(tmp_path):
    script = StageScript(tmp_path / "with space, # and %s")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    workspace = Workspace(script.settings, "extractor")
    workspace.prepare(spec())
    assert workspace.reproduce(None).ran == ALL
    workspace.push()
    assert list(Path(workspace.remote.url).rglob("*.dir"))
    assert not list(workspace.folder.rglob(".gitignore"))
