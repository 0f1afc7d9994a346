"""A home with a real gateway worker, a scripted model behind it, and a prompt with golden cases."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
from typer.testing import CliRunner

from deploy.cli import app
from deploy.ready import KEY_FILE
from evals.records import Verdict
from evals.verdicts import VerdictRow, verdict_of
from gateway.database import now, open_database
from gateway.prompt_versions import PromptVersionRow, put_version, set_label
from gateway.request_log import LogReader
from prompts.library import load_prompt
from tests.gateway_process import ROOT, GatewayProcess, configuration

PROMPT = """\
name: {name}
messages:
  - role: user
    content: "{asked} {{{{ city }}}}?"
variables: [{{name: city}}, {{name: passages, type: list, required: false, default: []}}]
model: chat
evaluation:
  cases: {cases}
  metrics: [contains, refusal, latency, cost]
  gate:
    - {{metric: contains, margin: 0.05, minimum_n: 20}}
  fields: {{user_input: city, retrieved_contexts: passages}}
"""
CASES = 40


class EvaluatedHome:
    """The home. `run` calls `llmops evals` in this process, `process` as one of its own."""

    def __init__(self, folder: Path, upstream: str, **sections: Any):
        folder.mkdir(parents=True)
        self.folder = folder
        self.gateway = GatewayProcess(folder / "home", configuration(upstream, **sections))
        key = self.gateway.home / KEY_FILE
        key.parent.mkdir(exist_ok=True)
        key.write_text(self.gateway.key)
        self.cases = folder / "cases.jsonl"
        self.write_cases(
            {
                "case_id": f"case-{number:03}",
                "variables": {"city": f"town-{number:03}", "passages": [f"It is number {number}."]},
                "expected": f"answer-{number:03}",
                "reference": f"The answer is answer-{number:03}.",
            }
            for number in range(CASES)
        )
        self.prompt = self.write_prompt("capital", "What of")

    def write_prompt(self, name: str, asked: str) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(PROMPT.format(name=name, asked=asked, cases=self.cases))
        return path

    def write_cases(self, rows: Any) -> None:
        self.cases.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))

    def sync(self, version: str, path: Path, label: str | None = None) -> None:
        """Put a version into the state database, as a sync does."""
        prompt = load_prompt(path)
        database = open_database(self.gateway.settings.database_url)
        with database.transaction() as session:
            row = PromptVersionRow(
                name=prompt.name, version=version, content_hash=prompt.content_hash,
                content=prompt.content, git_sha=None, path=str(path),
                created_at=now(),
            )  # fmt: skip
            put_version(session, row)
            if label is not None:
                set_label(session, prompt.name, label, version)
        database.close()

    def run(self, *arguments: str) -> Any:
        return self.llmops("evals", *arguments)

    def llmops(self, *arguments: str) -> Any:
        done = CliRunner().invoke(app, [*arguments], env=self.gateway.environ)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    def out(self, *arguments: str, code: int = 0) -> str:
        done = self.run(*arguments)
        assert done.exit_code == code, done.output
        return str(done.stdout)

    def refused(self, *arguments: str) -> str:
        """What a command that fails says; nothing was stored."""
        before = len(self.verdicts())
        done = self.run(*arguments)
        assert (done.exit_code, done.stdout) == (1, ""), done.output
        assert len(self.verdicts()) == before
        line = str(done.stderr).splitlines()[-1]
        assert line.startswith("error: "), done.stderr
        return line.removeprefix("error: ")

    def process(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "evals", *arguments],
            cwd=ROOT,
            env=self.gateway.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def verdicts(self) -> list[Verdict]:
        """All of them, oldest first."""
        database = open_database(self.gateway.settings.database_url)
        with database.session() as session:
            rows = session.query(VerdictRow).order_by(VerdictRow.verdict_id)
            found = [verdict_of(row) for row in rows]
        database.close()
        return found

    @property
    def reader(self) -> LogReader:
        settings = self.gateway.settings
        return LogReader(settings.spool_dir, settings.log_table)
