"""Sections of the configuration that packages above the gateway own, and what validates them."""

from collections.abc import Sequence

from deploy.schedule_plan import SchedulePlan
from deploy.stack import Stack
from evals.drift_plan import DriftPlan
from gateway.configuration import Configuration, ConfigurationError, owned_section
from gateway.section import Section
from pipelines.cluster import Kubeflow
from pipelines.data_plan import DataPlan
from pipelines.trigger_rules import Triggers

OWNED: Sequence[tuple[str, str, type[Section]]] = (
    ("data", "where snapshots of data are kept", DataPlan),
    ("drift", "whose traffic is watched", DriftPlan),
    ("schedule", "what runs by itself", SchedulePlan),
    ("triggers", "what verdicts start", Triggers),
    ("kubeflow", "parts of a cluster", Kubeflow),
    ("stack", "the local stack", Stack),
)


def require_owned(configuration: Configuration, origin: str) -> None:
    """Raises ConfigurationError with the path of every wrong key of these sections."""
    wrong = []
    for name, _, kind in OWNED:
        try:
            owned_section(configuration, name, kind, origin)
        except ConfigurationError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigurationError("\n".join(wrong))
