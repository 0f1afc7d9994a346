"""The workflow of pull requests: its commands are make targets that exist, its rights are few, and
its comment is upserted, seen through a scripted GitHub on a real socket."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from pipelines.prompt_comment import MARKER
from tests.pipelines.backstage import Backstage

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "prompts.yml"
REPORT = f"{MARKER}\n## Prompts: one report\n"
PAGE = 2  # comments a page of the scripted GitHub
BOT, PERSON = {"type": "Bot", "login": "github-actions[bot]"}, {"type": "User", "login": "ann"}

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="not run: no node here")


@pytest.fixture(scope="module")
def workflow() -> Any:
    return yaml.load(WORKFLOW.read_text(), yaml.BaseLoader)  # with it `on` is no boolean


def steps(workflow: Any) -> list[Any]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_every_command_is_a_make_target_that_exists(workflow: Any) -> None:
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    assert {"make prompts-evaluate", "make prompts-comment", "make prompts-sync"} <= {*commands}
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for command in commands:
        make, target = command.split(" ")
        assert make == "make" and target in targets, command


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("prompts-evaluate", 'llmops prompts evaluate --base "$BASE" --head "$HEAD"'),
        ("prompts-sync", "llmops prompts sync --accept"),
        ("prompts-comment", "node .github/comment.mjs"),
    ],
)
def test_make_knows_what_to_run(target: str, said: str) -> None:
    done = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said in done.stdout


def test_where_nothing_was_evaluated_the_report_says_so(tmp_path: Path) -> None:
    """A green report of the commit before must not stay there."""
    summary = tmp_path / "summary.md"
    given = {"REPORT": str(tmp_path / "reports"), "GITHUB_STEP_SUMMARY": str(summary)}
    subprocess.run(
        ["make", "prompts-summary"], cwd=ROOT, env={**os.environ, **given}, check=True,
        capture_output=True,
    )  # fmt: skip
    assert summary.read_text().startswith(f"{MARKER}\n## Prompts: could not be evaluated\n")
    assert summary.read_text() == (tmp_path / "reports" / "report.md").read_text()


def test_rights_and_triggers(workflow: Any) -> None:
    assert "pull_request_target" not in WORKFLOW.read_text()
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["evaluate"]["permissions"] == {
        "contents": "read", "pull-requests": "write",
    }  # fmt: skip
    assert "permissions" not in workflow["jobs"]["sync"]
    for trigger in ("pull_request", "push"):
        assert workflow["on"][trigger]["paths"] == ["prompts/library/**", "evals/golden/**"]
    assert workflow["on"]["push"]["branches"] == ["main"]
    checkouts = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/che")]
    assert len(checkouts) == 2
    assert all(step["with"]["fetch-depth"] == "0" for step in checkouts)
    # Nothing that a pull request says, such as its title, is pasted into a command.
    assert not any("${{" in step.get("run", "") for step in steps(workflow))


def test_the_report_is_told_whatever_the_evaluation_says(workflow: Any) -> None:
    after = steps({"jobs": {"evaluate": workflow["jobs"]["evaluate"]}})[4:]
    assert len(after) == 4
    assert all(step["if"] == "always()" for step in after)


@dataclass
class GitHub:
    """Comments of one pull request; `calls` are those that wrote, `forbidden` what is refused."""

    url: str = ""
    comments: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    forbidden: frozenset[str] = frozenset()
    failing: int = 0
    vanished: bool = False

    def add(self, body: str, user: dict[str, str]) -> None:
        self.comments.append({"id": len(self.comments) + 1, "body": body, "user": user})

    def refused(self, request: web.Request) -> web.Response | None:
        assert request.headers["authorization"] == "Bearer ghs_token"
        if self.failing:
            self.failing -= 1
            return web.json_response({"message": "busy"}, status=502)
        if request.method in self.forbidden:
            said = {"message": "Resource not accessible by integration"}
            return web.json_response(said, status=403)
        return None

    async def listed(self, request: web.Request) -> web.Response:
        page = int(request.query.get("page", 1))
        rows = self.comments[(page - 1) * PAGE : page * PAGE]
        more = len(self.comments) > page * PAGE
        link = {"link": f'<{self.url}{request.path}?page={page + 1}>; rel="next"'} if more else {}
        return self.refused(request) or web.json_response(rows, headers=link)

    async def made(self, request: web.Request) -> web.Response:
        refused = self.refused(request)
        if refused is None:
            self.calls.append("POST")
            self.add((await request.json())["body"], BOT)
        return refused or web.json_response({}, status=201)

    async def changed(self, request: web.Request) -> web.Response:
        refused = self.refused(request)
        if refused is not None:
            return refused
        self.calls.append(f"{request.method} {request.match_info['id']}")
        if self.vanished:
            return web.json_response({"message": "Not Found"}, status=404)
        (one,) = [row for row in self.comments if row["id"] == int(request.match_info["id"])]
        if request.method == "DELETE":
            self.comments.remove(one)
            return web.Response(status=204)
        one["body"] = (await request.json())["body"]
        return web.json_response(one)


@pytest.fixture
def github(backstage: Backstage) -> Iterator[GitHub]:
    state = GitHub()
    runner = backstage.run(served(state))
    yield state
    backstage.run(runner.cleanup())


async def served(state: GitHub) -> web.AppRunner:
    application = web.Application()
    issues = "/repos/own/er/issues"
    application.router.add_get(f"{issues}/7/comments", state.listed)
    application.router.add_post(f"{issues}/7/comments", state.made)
    application.router.add_patch(f"{issues}/comments/{{id}}", state.changed)
    application.router.add_delete(f"{issues}/comments/{{id}}", state.changed)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    state.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return runner


def told(github: GitHub, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    report = folder / "report.md"
    report.write_text(REPORT)
    given = {"GITHUB_API_URL": github.url, "GITHUB_TOKEN": "ghs_token",
             "GITHUB_REPOSITORY": "own/er", "PULL_REQUEST": "7"}  # fmt: skip
    return subprocess.run(
        ["node", str(ROOT / ".github" / "comment.mjs"), str(report)],
        env={"PATH": os.environ["PATH"], **given, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_node
def test_one_comment_is_made_and_then_replaced(github: GitHub, tmp_path: Path) -> None:
    for _ in range(3):
        github.add("what a person says", PERSON)
    github.add(REPORT, PERSON)  # a quotation
    assert told(github, tmp_path).stdout == "the comment was made\n"
    github.comments[-1]["body"] = f"{MARKER}\nof an earlier commit"
    done = told(github, tmp_path)
    assert (done.returncode, done.stdout) == (0, "the comment was replaced\n"), done.stderr
    assert github.calls == ["POST", "PATCH 5"]
    assert github.comments[-1]["body"] == REPORT
    assert len(github.comments) == 5


@needs_node
def test_doubles_are_removed_and_a_deleted_comment_is_made_anew(
    github: GitHub, tmp_path: Path
) -> None:
    for _ in range(3):
        github.add(f"{MARKER}\nearlier", BOT)
    assert told(github, tmp_path).returncode == 0
    assert [one["body"] for one in github.comments] == [REPORT]
    github.vanished = True
    assert told(github, tmp_path).stdout == "the comment was made\n"
    assert github.calls[-2:] == ["PATCH 1", "POST"]


@needs_node
def test_without_the_right_to_write_the_job_goes_on(github: GitHub, tmp_path: Path) -> None:
    github.forbidden = frozenset(("POST", "PATCH"))
    done = told(github, tmp_path)
    assert (done.returncode, github.comments) == (0, [])
    assert "the report is in the job's summary" in done.stdout


@needs_node
def test_trouble_of_github_is_waited_for_and_then_said(github: GitHub, tmp_path: Path) -> None:
    github.failing = 1
    assert told(github, tmp_path).returncode == 0
    assert github.calls == ["POST"]
    github.failing = 9
    done = told(github, tmp_path)
    assert done.returncode == 1
    assert "HTTP 502" in done.stderr
    assert "(a number) are wanted" in told(github, tmp_path, PULL_REQUEST="7; rm").stderr
