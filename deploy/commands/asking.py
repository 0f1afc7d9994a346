"""What commands ask a prompt's cases with: the prompt, the gateway, a judge, and a progress bar."""

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.commands.state import State
from gateway.configuration import WILDCARD, Configuration, load_configuration
from gateway.prompt_versions import PRODUCTION, PromptVersionRow, label_of, versions_of
from prompts.library import LIBRARY, load_prompt
from prompts.prompt import Evaluation, Prompt

if TYPE_CHECKING:
    from evals.evaluation import Client, Say
    from evals.judge import Judge

EMBEDDINGS = "all-MiniLM-L6-v2"
REPEAT_SECONDS = 10.0
GATEWAY_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Found:
    """A prompt, and where it is from: a version of it, or a file that was not synced.

    Attributes:
        rules: the file that says how it is evaluated; None where there is none.
    """

    prompt: Prompt
    version: str | None
    path: Path | None = None
    rules: Path | None = None

    @property
    def called(self) -> str:
        """For people."""
        if self.version is not None:
            return f"{self.prompt.name} version {self.version}"
        packaged = self.path is not None and self.path.parent == LIBRARY
        return f"{self.prompt.name} ({'the library, not synced' if packaged else self.path})"


def prompt_of(state: State, name: str, which: str | None = None) -> Found:
    """A prompt of the state database by name and version or label; or one of a file.

    How it is evaluated (cases, metrics, gate, fields) is no part of a version: its file says so.
    Without `which`: the production version, else the newest. What was never synced is read from
    the library; a name that ends in `.yaml` is a file's path.

    Raises: NotFound, or ValueError or OSError of a file.
    """
    from pipelines.prompt_labels import require_version

    if name.endswith((".yaml", ".yml")):
        return Found(load_prompt(Path(name)), None, Path(name), Path(name))
    with state.database.session() as session:
        versions = versions_of(session, name)
        file = LIBRARY / f"{name}.yaml"
        if which is None and not versions and file.exists():
            return Found(load_prompt(file), None, file, file)
        if which is None and versions and label_of(session, name, PRODUCTION) is None:
            which = versions[-1].version
        row = require_version(session, name, which or PRODUCTION)
        rules = _rules(row)
        evaluation = Evaluation() if rules is None else load_prompt(rules).evaluation
        prompt = row.prompt.model_copy(update={"evaluation": evaluation})
        return Found(prompt, row.version, rules=rules)


def _rules(row: PromptVersionRow) -> Path | None:
    """The file that the version is of, as far as it is here."""
    places = Path(row.path), LIBRARY / f"{row.name}.yaml"
    return next((path for path in places if path.exists()), None)


def not_ours(found: Found, cases: str | None) -> str | None:
    """Why the cases and the way to judge are not those that the project agreed on; else None.

    What is agreed on stands in the library, and its cases lie in `evals/golden`.
    """
    from evals.golden_cases import GOLDEN, golden_path

    if cases is not None:
        return f"{cases} are other cases than its own"
    if found.rules is None or found.rules.resolve().parent != LIBRARY.resolve():
        return f"{found.rules or 'no file'} says how it is judged, which is not in the library"
    own = found.prompt.evaluation.cases
    if own is not None and golden_path(own).resolve().parent != GOLDEN.resolve():
        return f"its cases, {own}, are not in {GOLDEN.name}"
    return None


def no_label(found: Found, cases: str | None) -> str | None:
    """Why a verdict of the prompt's gate decides no label; None where it does.

    The gate has to be agreed on (`not_ours`) and committed: nobody writes one for himself.
    """
    from pipelines.prompt_sync import DIRTY, read_sources

    reason = not_ours(found, cases)
    if reason is not None or found.rules is None:
        return reason
    sources = {source.prompt.name: source.git_sha for source in read_sources(LIBRARY)}
    commit = sources.get(found.prompt.name)
    if commit is None:
        return f"{found.rules} is not in Git"
    return f"{found.rules} is not committed as it is" if commit.endswith(DIRTY) else None


def require_gateway(client: "Client") -> None:
    """Raises RuntimeError where the gateway is away or does not take the key."""
    request = urllib.request.Request(
        f"{client.url}/models", headers={"authorization": f"Bearer {client.api_key}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=GATEWAY_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise RuntimeError(f"{client.url} does not take the key (HTTP {error.code})") from error
        # anything else: it is there; what is wrong with it is seen in what it answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise RuntimeError(
            f"no gateway answers at {client.url} ({reason}); start one with llmops up, "
            "or name another, where the command has --url"
        ) from error


def client_of(
    state: State, *, api_key_env: str | None = None, judge: "Judge | None" = None
) -> "Client":
    """How this installation's gateway is asked.

    Args:
        api_key_env: environment variable with the key; else the local development key.
    """
    from evals.evaluation import Client

    configuration = load_configuration(state.settings.config_path)
    models = configuration.models
    embeddings = EMBEDDINGS if EMBEDDINGS in models or WILDCARD in models else None
    url, key = gateway_url(configuration), api_key_of(state, api_key_env)
    return Client(url, key, embeddings=embeddings, judge=judge)


def judge_of(
    state: State, prompt: str, model: str | None = None, *, api_key_env: str | None = None
) -> "Judge":
    """The judge that a prompt (`NAME`, or `NAME@MODEL`) and a model are.

    The prompt's version is production, else the newest; a file is taken by its path.
    """
    name, _, named = prompt.partition("@")
    return judge_by(state, prompt_of(state, name), model or named, api_key_env)


def judge_by(state: State, found: Found, model: str | None, api_key_env: str | None) -> "Judge":
    """The judge that a model is by a prompt; without a model, by the prompt's own."""
    from evals.judge import Judge

    configuration = load_configuration(state.settings.config_path)
    return Judge(
        url=gateway_url(configuration),
        model=model or found.prompt.model,
        prompt=found.prompt,
        api_key=api_key_of(state, api_key_env),
        embeddings=EMBEDDINGS,
    )


def gateway_url(configuration: Configuration) -> str:
    """Up to and with `/v1`."""
    from deploy.parts import reachable

    server = configuration.server
    return f"http://{reachable(server.host)}:{server.port}/v1"


def api_key_of(state: State, api_key_env: str | None) -> str:
    """A key of the gateway. Raises ValueError that says where one is looked for."""
    from deploy.ready import KEY_FILE

    if api_key_env is not None:
        key = state.settings.secret_value(api_key_env)
        if not key:
            raise ValueError(f"{api_key_env}: the environment has no key of the gateway by it")
        return key
    file = state.settings.home / KEY_FILE
    if not file.exists():
        raise ValueError(
            f"{file}: no key of the gateway there (llmops up makes one); name an environment "
            "variable that has one with --api-key-env"
        )
    return file.read_text().strip()


@contextmanager
def shown_progress() -> "Iterator[Say]":
    """Shows on standard error how far an evaluation is: a bar, or lines where nobody looks."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console).say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def say(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield say


class _Lines:
    """A line when something new begins or ends, and now and then meanwhile."""

    def __init__(self, console: Console):
        self._console = console
        self._said, self._moment = "", 0.0

    def say(self, what: str, done: int, total: int) -> None:
        lately = time.monotonic() - self._moment < REPEAT_SECONDS
        if what == self._said and lately and done < total:
            return
        self._said, self._moment = what, time.monotonic()
        self._console.print(f"{what} {done}/{total}", markup=False, highlight=False, soft_wrap=True)
