"""The running stack of this home, opened for the replay of flights."""

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.commands.drift import watch_of
from deploy.commands.lineage import chain
from deploy.commands.state import open_state
from deploy.demo.desk import Counter
from deploy.demo.loop import InstalledLoop, failing
from deploy.demo.machine import facts
from deploy.demo.stage import LoopFailed, Step
from deploy.demo.tabular_account import FlightAccount
from deploy.demo.tabular_loop import FlightLoop
from deploy.demo.tabular_replay import Replay
from deploy.demo.tabular_story import FlightStory
from deploy.demo.tabular_terms import SINCE, FlightTerms, start_of
from deploy.demo.tabular_year import OnlineFeed, read_year, until_of
from deploy.demo.telling import Teller
from gateway.configuration import ConfigurationError, load_configuration
from gateway.database import now
from gateway.feature_schema import feature_schema
from gateway.settings import Settings
from pipelines.code_version import git_sha
from pipelines.features import open_features
from pipelines.installation import open_installation
from pipelines.snapshots import freeze
from pipelines.spec import Spec, load_spec
from pipelines.tabular_spec import sections

SPEC = Path("flight-delay")
PACKAGES = ("kserve", "feast", "scikit-learn", "xgboost-cpu", "evidently", "mlflow", "dvc")


@contextmanager
def installed(settings: Settings) -> Iterator[FlightLoop]:
    """The stack of `settings`; LoopFailed where there is none."""
    try:
        spec = _replayed(load_spec(SPEC))
        with open_state() as state, open_installation(settings) as installation:
            watch = watch_of(state, load_configuration(settings.config_path))
            loop = InstalledLoop(installation, spec, chain)
            yield FlightLoop(installation, spec, loop, watch)
    except ConfigurationError as error:
        raise LoopFailed(str(error)) from error


@contextmanager
def prepared(loop: FlightLoop, terms: FlightTerms, teller: Teller) -> Iterator[FlightStory]:
    """The year's data, frozen, with the online store that follows it."""
    installation = loop.installation
    configuration, home = installation.configuration, installation.settings.home
    service = sections(loop.spec).dataset.service
    account = FlightAccount(terms, now(), {**facts(), **_versions()})
    with teller.progress() as show, failing():
        show(Step("snapshot", 0, 1))
        source = sections(loop.spec).dataset.source
        snapshot = freeze(installation, source, start_of(SINCE), until_of(terms))
        show(Step("snapshot", 1, 1, snapshot.id[:12]))
        account.snapshot_id = snapshot.id
        account.rows = {name: one.rows for name, one in snapshot.manifest.files.items()}
    with open_features(snapshot.folder, configuration.model_server.redis_url) as store:
        with teller.progress() as show, failing():
            show(Step("features", 0, 1))
            year = read_year(store, snapshot, service, terms)
            feed = OnlineFeed(store, snapshot.folder)
            show(Step("features", 1, 1, f"{len(year.learnt)} rows to learn from"))
        server = configuration.server
        key = (home / "secrets" / "dev.key").read_text().strip()
        counter = Counter(f"http://{server.host}:{server.port}", key, terms.alias)
        replay = Replay(counter, terms, feature_schema(service), feed)
        yield FlightStory(loop, replay, year, teller, account)


def _replayed(spec: Spec) -> Spec:
    """The replay's hours pass in a moment: labels come in their order, and count when they come."""
    plan = spec.experiment.model_copy(update={"matures_hours": 0.0})
    return spec.model_copy(update={"experiment": plan})


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"commit": git_sha() or "not in Git", **found}
