"""The one reader of the environment: where this installation lives and the secrets it was given.

Everything else is configured in one YAML file (`gateway.configuration`). A secret that is not in
the environment is read from a file that only its owner can read (mode 0600) under `LLMOPS_HOME`,
and is made there when it is first wanted.
"""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SECRET_BYTES = 32
TELEMETRY = ("DO_NOT_TRACK", "RAGAS_DO_NOT_TRACK")


class SettingsError(ValueError):
    """The environment, or a secret's file, cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are, and the secrets. Printing it shows no secret.

    Attributes:
        home: folder of all run-time data (`LLMOPS_HOME`).
        config_path: the YAML configuration (`LLMOPS_CONFIG`).
        database_url: SQLAlchemy URL of the state database (`LLMOPS_DATABASE_URL`);
            SQLite in `home` by default.
        engine_python: interpreter of the environment that vLLM is installed in
            (`LLMOPS_ENGINE_PYTHON`).
        environ: the environment as it was read, for `secret_value`.
    """

    home: Path
    config_path: Path
    database_url: str = field(repr=False)
    engine_python: Path
    environ: Mapping[str, str] = field(repr=False)

    @property
    def spool_dir(self) -> Path:
        """Folder of the request log's spool, shared by the workers and the shipper."""
        return self.home / "spool"

    @property
    def tabular_dir(self) -> Path:
        """Where versions of tabular models lie, each in a folder of its served name."""
        return self.home / "tabular"

    @property
    def log_table(self) -> str:
        """Default location of the request log's Delta table."""
        return str(self.home / "log" / "requests")

    @property
    def metrics_dir(self) -> Path:
        """Folder of the workers' memory-mapped metric files."""
        return self.home / "run" / "metrics"

    def secret_value(self, name: str) -> str | None:
        """The value of environment variable `name`, or None if it is unset or empty."""
        return self.environ.get(name) or None

    def key_digest_secret(self) -> bytes:
        """Secret under which virtual keys are digested (`LLMOPS_KEY_SECRET`, or a 0600 file)."""
        return self._secret("LLMOPS_KEY_SECRET", "key_digest.secret").encode()

    def admin_credential(self) -> str:
        """Bearer credential of the admin API (`LLMOPS_ADMIN_KEY`, or a 0600 file)."""
        return self._secret("LLMOPS_ADMIN_KEY", "admin.secret", prefix="admin-")

    def webhook_secret(self) -> str:
        """Secret that webhooks are signed with (`LLMOPS_WEBHOOK_SECRET`, or a 0600 file)."""
        return self._secret("LLMOPS_WEBHOOK_SECRET", "webhook.secret")

    def _secret(self, variable: str, file_name: str, prefix: str = "") -> str:
        given = self.secret_value(variable)
        if given:
            return given
        return read_or_make_secret(self.home / "secrets" / file_name, prefix=prefix)


def read_or_make_secret(path: Path, prefix: str = "") -> str:
    """The secret kept in `path`; made at random, mode 0600, if there is none.

    Two processes that start together agree: the file appears whole, under its name, once.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(prefix + secrets.token_urlsafe(SECRET_BYTES))
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    if path.stat().st_mode & 0o077:
        raise SettingsError(f"{path} can be read by others; run: chmod 600 {path}")
    return path.read_text().strip()


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment once; `environ` stands in for it in tests."""
    env = dict(os.environ if environ is None else environ)
    home = Path(env.get("LLMOPS_HOME") or ".llmops").absolute()
    return Settings(
        home=home,
        config_path=Path(env.get("LLMOPS_CONFIG") or home / "gateway.yaml").absolute(),
        database_url=env.get("LLMOPS_DATABASE_URL") or f"sqlite:///{home / 'state.db'}",
        engine_python=Path(env.get("LLMOPS_ENGINE_PYTHON") or ".venv-engine/bin/python").absolute(),
        environ=env,
    )


def decline_telemetry() -> None:
    """Libraries that report their use to their makers read this when they are imported."""
    for name in TELEMETRY:
        os.environ.setdefault(name, "true")
