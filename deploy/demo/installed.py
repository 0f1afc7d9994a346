"""The running stack of this home, opened for the demo: the loop, and where its users come in."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.commands.lineage import chain
from deploy.demo.desk import Counter
from deploy.demo.loop import InstalledLoop
from deploy.demo.stage import LoopFailed
from deploy.migrations import upgrade
from gateway.configuration import ConfigurationError
from gateway.settings import Settings, SettingsError
from pipelines.installation import open_installation
from pipelines.llm_spec import llm_spec
from pipelines.spec import load_spec

SPEC = Path("extractor")


@dataclass(frozen=True, slots=True)
class Installed:
    """What the demo plays on."""

    loop: InstalledLoop
    counter: Counter


@contextmanager
def installed(settings: Settings) -> Iterator[Installed]:
    """The stack of `settings`; LoopFailed where there is none."""
    try:
        upgrade(settings.database_url)
        spec = load_spec(SPEC)
        with open_installation(settings) as installation:
            server = installation.configuration.server
            key = settings.home / "secrets" / "dev.key"
            counter = Counter(
                url=f"http://{server.host}:{server.port}",
                key=key.read_text().strip() if key.exists() else "",
                alias=spec.alias,
                parameters=llm_spec(spec).evaluation.parameters,
            )
            yield Installed(InstalledLoop(installation, spec, chain), counter)
    except (ConfigurationError, SettingsError) as error:
        raise LoopFailed(str(error)) from error
