"""A repository with a prompt, golden cases and a branch that changes them."""

from pathlib import Path
from typing import Any

import orjson

from tests.pipelines.prompt_files import PromptFolder

GATE = "[{metric: exact_match, margin: 0.03, minimum_n: 50}]"
CASES = 60
FILE = """\
name: {name}
messages:
  - role: user
    content: "{said} {{{{ word }}}}"
variables:
  - {{name: word}}
model: chat
params: {{temperature: 0, max_tokens: 9}}
evaluation:
  cases: {name}.jsonl
  metrics: [exact_match]
  gate: {gate}
"""


class PromptBranch(PromptFolder):
    """`main` has what was committed before `branch` was called."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.golden = root / "golden"
        self.golden.mkdir()
        self.git("init", "-q", "-b", "main")

    def prompt(self, name: str, said: str = "Say", gate: str = GATE) -> Path:
        """Write a prompt with golden cases; it is answered by the word."""
        path = self.folder / f"{name}.yaml"
        path.write_text(FILE.format(name=name, said=said, gate=gate))
        if not (self.golden / f"{name}.jsonl").exists():
            self.cases(name, [(f"word{number}", f"word{number}") for number in range(CASES)])
        return path

    def cases(self, name: str, words: list[tuple[str, str]], **more: Any) -> None:
        """Write golden cases: the word that is given, and the one that is expected."""
        rows = [
            {"case_id": f"c{number}", "variables": {"word": word}, "expected": expected, **more}
            for number, (word, expected) in enumerate(words)
        ]
        text = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        (self.golden / f"{name}.jsonl").write_bytes(text)

    def branch(self) -> str:
        """Commit what is there on `main`, and go on in a branch; the commit."""
        sha = self.commit()
        self.git("checkout", "-q", "-b", "change")
        return sha

    def options(self) -> list[str]:
        """Of the command, to find it."""
        return ["--folder", str(self.folder), "--cases", str(self.golden)]
