"""Puts the scripted stages in the place of `pipelines.stages`, for child processes only."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
PACKAGE = f"__path__.append({str(ROOT / 'pipelines')!r})\n"


@dataclass(frozen=True)
class StageScript:
    """What the stages are to do, and which of them were called."""

    home: Path

    def __post_init__(self) -> None:
        package = self.home / "python" / "pipelines"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(PACKAGE)
        shutil.copy(Path(__file__).with_name("scripted_stages.py"), package / "stages.py")
        self.say(examples=30)

    def say(self, **script: Any) -> None:
        (self.home / "script.json").write_text(json.dumps(script))

    @property
    def calls(self) -> list[str]:
        path = self.home / "calls"
        return path.read_text().split() if path.exists() else []

    def forget(self) -> None:
        (self.home / "calls").unlink(missing_ok=True)

    @property
    def variables(self) -> dict[str, str]:
        return {
            "SCRIPT": str(self.home / "script.json"),
            "PYTHONPATH": f"{self.home / 'python'}:{ROOT}",
        }

    @property
    def settings(self) -> Settings:
        """Settings of a home of its own, whose child processes see the scripted stages."""
        home = {"LLMOPS_HOME": str(self.home / "home")}
        return load_settings(dict(os.environ) | self.variables | home)
