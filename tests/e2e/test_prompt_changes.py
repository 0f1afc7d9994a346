"""Pull requests on the real stack: a branch that worsens a prompt fails with the flipped cases in
its report, one that betters it passes, production follows, and a rollback is quick.

The small model tells tickets apart a little once it has seen one example of each label, and not at
all without: taking the examples out worsens the prompt, putting them in betters it.
"""

import json
import time
from pathlib import Path

import pytest
import yaml

from evals.golden_cases import GOLDEN
from prompts.library import LIBRARY
from tests.e2e.conftest import RunningStack, run_llmops
from tests.pipelines.prompt_files import PromptFolder

NAME = "ticket-examples"
ANSWERS = 240  # each run asks 120 cases of both versions
IN_FORCE_SECONDS = 2.0
SYNC_SECONDS = 300.0
EXAMPLES = (
    ("I was charged twice this month.", "billing"),
    ("I forgot my password.", "account"),
    ("The button does nothing when I click it.", "bug"),
    ("Nothing loads, the whole site is down for everybody.", "outage"),
    ("Please add a dark mode.", "feature"),
    ("How do I export my data?", "how-to"),
)


class Branches(PromptFolder):
    """The library's classifier under a name of its own, with and without examples."""

    def __init__(self, root: Path):
        super().__init__(root)
        golden = root / "golden"
        golden.mkdir()
        cases = (GOLDEN / "ticket-classifier.jsonl").read_bytes()
        (golden / "ticket-classifier.jsonl").write_bytes(cases)
        self.git("init", "-q", "-b", "main")

    def put(self, examples: bool) -> None:
        content = yaml.safe_load((LIBRARY / "ticket-classifier.yaml").read_text())
        system, ticket = content["messages"]
        shown = [
            message
            for text, label in EXAMPLES
            for message in (
                {"role": "user", "content": f"Ticket: {text}\nLabel:"},
                {"role": "assistant", "content": label},
            )
        ]
        content["messages"] = [system, *(shown if examples else ()), ticket]
        # Other tests' stacks share the machine: how long an answer takes says little here.
        gate = [one for one in content["evaluation"]["gate"] if one["metric"] != "latency"]
        content["evaluation"]["gate"] = gate
        path = self.folder / f"{NAME}.yaml"
        path.write_text(yaml.safe_dump({**content, "name": NAME}, sort_keys=False))
        self.commit()


@pytest.fixture
def branches(tmp_path: Path) -> Branches:
    return Branches(tmp_path / "repository")


def evaluate(stack: RunningStack, branches: Branches, out: Path, *before: str) -> tuple[int, str]:
    place = ("--folder", str(branches.folder), "--cases", str(branches.root / "golden"))
    done = run_llmops(
        "prompts", "evaluate", *before, *place, "--out", str(out),
        environ=stack.environ, seconds=600,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_worsened_bettered_and_rolled_back(
    stack: RunningStack, branches: Branches, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    branches.put(examples=True)
    branches.git("checkout", "-q", "-b", "worse")
    branches.put(examples=False)
    code, said = evaluate(stack, branches, out, "--base", "main")
    assert code == 100, said
    (found,) = json.loads((out / "report.json").read_text())["prompts"]
    assert found["outcome"] == "worse"
    (exact,) = [one for one in found["verdict"]["metrics"] if one["name"] == "exact_match"]
    assert exact["n"] == ANSWERS // 2 and exact["ci_high"] < 0
    assert sum(found["verdict"]["evidence"]["targets"].values()) == ANSWERS // 2
    comment, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    assert "cases got worse" in comment and "<summary>exact_match" in page

    sync = ("prompts", "sync", "--folder", str(branches.folder))
    stack.llmops(*sync, "--first-label", seconds=SYNC_SECONDS)
    branches.git("checkout", "-q", "main")
    code, said = evaluate(stack, branches, out, "--production")
    assert code == 0, said
    assert f"{NAME}: better" in said
    moved = stack.llmops(*sync, "--accept", seconds=SYNC_SECONDS)
    assert f"production of {NAME} is version 2, was 1" in moved

    began = time.monotonic()
    order = ("prompts", "rollback", NAME, "--reason", "drill")
    assert "is version 1, was 2" in stack.llmops(*order)
    ended = time.monotonic()
    while served(stack) != "1":
        assert time.monotonic() - ended < IN_FORCE_SECONDS
        time.sleep(0.05)
    print(f"rollback: {ended - began:.2f} s for the command, {time.monotonic() - ended:.2f} s more")


def served(stack: RunningStack) -> str:
    """The version that a request gets now."""
    import urllib.request

    body = {"prompt_id": NAME, "prompt_variables": {"ticket": "I forgot my password."}}
    request = urllib.request.Request(
        f"{stack.base_url}/chat/completions",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {stack.api_key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.headers["x-prompt-version"])
