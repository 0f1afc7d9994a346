"""Prompt files in a Git repository of a test's own."""

import os
import subprocess
from pathlib import Path

FILE = """\
name: {name}
description: asks {name}
messages:
  - role: user
    content: "{said} {{{{ who }}}}"
variables:
  - {{name: who}}
model: chat
params: {{temperature: 0, max_tokens: 9}}
"""


class PromptFolder:
    """`prompts/` of a repository; `write` and `commit` change it."""

    def __init__(self, root: Path):
        self.root = root
        self.folder = root / "prompts"
        self.folder.mkdir(parents=True)

    def write(self, name: str, said: str = "Greet", more: str = "") -> Path:
        """Write the file of a prompt."""
        path = self.folder / f"{name}.yaml"
        path.write_text(FILE.format(name=name, said=said) + more)
        return path

    def commit(self) -> str:
        """Commit everything; the commit's id."""
        if not (self.root / ".git").exists():
            self.git("init", "-q")
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "prompts")
        return self.git("rev-parse", "HEAD")

    def git(self, *arguments: str) -> str:
        """Run Git in the repository."""
        names = {f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER")
                 for what in ("NAME", "EMAIL")}  # fmt: skip
        done = subprocess.run(
            ["git", "-C", str(self.root), *arguments],
            env={**os.environ, **names},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()
