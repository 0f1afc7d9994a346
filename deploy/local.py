"""The stack on one machine: brought up whole or not at all, and taken down without a trace."""

import fcntl
import shutil
import time
import xmlrpc.client
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from deploy import uptime
from deploy.keeper import DEAD, Keeper, KeeperError, part_environment
from deploy.leftovers import describe, end, leftovers
from deploy.parts import Part
from deploy.preflight import problems
from deploy.startup import Show, Startup
from gateway.settings import Settings

POLL_SECONDS = 0.05
SLACK_SECONDS = 5.0

Say = Callable[[str], None]


class StackError(RuntimeError):
    """The stack cannot be brought up; the message has a line for each reason and its remedy."""


def bring_up(
    settings: Settings,
    parts: Sequence[Part],
    config_path: Path,
    before_parts: Callable[[], None],
    show: Show,
) -> None:
    """Start `parts` and return when all are healthy.

    `before_parts` runs once nothing stands in the way, while the keeper starts. Whatever goes
    wrong, an interrupt included, nothing of this start is left running.

    Raises: StackError, KeeperError, startup.StartupFailed, and what `before_parts` raises.
    """
    home = settings.home
    with _one_start(home):
        refuse_second(home)
        found = problems(parts, home)
        if found:
            raise StackError("\n".join(str(problem) for problem in found))
        keeper = Keeper(home)
        shutil.rmtree(home / "run" / "metrics", ignore_errors=True)  # of processes long gone
        for folder in ("run/metrics", "logs", "spool", "redis", "mlflow", "models", "adapters"):
            (home / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        uptime.close_open(keeper.run_dir)
        environ = part_environment(home, config_path, settings.environ)
        whole = False
        try:
            keeper.launch(parts, environ)
            before_parts()
            keeper.wait_until_running()
            Startup(keeper, parts, environ, show).run()
            whole = True
        finally:
            if not whole:
                take_down(home, lambda text: None)


def refuse_second(home: Path) -> None:
    """Raise StackError if a stack runs in `home`, or something is left of one."""
    if Keeper(home).running():
        raise StackError(
            f"the stack in {home} is up already: see llmops status, or stop it with llmops down"
        )
    left = leftovers(home)
    if left:
        listed = ", ".join(describe(process) for process in left[:5])
        raise StackError(
            f"the keeper of the stack in {home} was killed and {len(left)} of its processes still "
            f"run: {listed}; end them with llmops down"
        )


def take_down(home: Path, say: Say) -> int:
    """Stop everything of the stack in `home`; returns how many processes there were.

    Where the keeper runs it stops the parts, the last started first, so that the gateway drains
    before what it needs goes away; what is left after that, or without a keeper, is ended here.
    """
    keeper = Keeper(home)
    count = len(leftovers(home))
    if keeper.running():
        _stop_parts(keeper, say)
    rest = leftovers(home)
    if rest:
        say(f"ending {len(rest)} processes")
        end(rest)
    keeper.forget()
    if keeper.run_dir.exists():
        uptime.close_open(keeper.run_dir)
    return count


def _stop_parts(keeper: Keeper, say: Say) -> None:
    """Schedule, controller, gateway, shipper one by one, then the rest at once, then the keeper."""
    process = _keeper_process(keeper)
    try:
        for part in ("schedule", "controller", "gateway", "shipper"):
            _stop(keeper, say, {part})
        _stop(keeper, say, {state.part for state in keeper.states()})
        keeper.shutdown()
    except (KeeperError, OSError, xmlrpc.client.Error) as error:
        say(f"the keeper does not answer: {error}")
        return
    if process is not None:
        psutil.wait_procs([process], timeout=SLACK_SECONDS)


def _stop(keeper: Keeper, say: Say, parts: set[str]) -> None:
    alive = {state.part for state in keeper.states() if state.state != "STOPPED"} & parts
    for part in sorted(alive):
        say(f"stopping {part}")
        keeper.stop(part)
    while any(state.part in alive and state.state not in DEAD for state in keeper.states()):
        time.sleep(POLL_SECONDS)  # the keeper kills what takes longer than its stop_seconds


def _keeper_process(keeper: Keeper) -> psutil.Process | None:
    try:
        return psutil.Process(int((keeper.run_dir / "keeper.pid").read_text()))
    except (OSError, ValueError, psutil.Error):
        return None


@contextmanager
def _one_start(home: Path) -> Iterator[None]:
    """Hold the lock that lets one start run at a time."""
    run_dir = home / "run"
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run_dir / "up.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StackError(f"another llmops up is starting the stack in {home}") from error
        yield
