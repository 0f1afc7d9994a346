"""The store of snapshots that is configured."""

from gateway.configuration import owned_section
from pipelines.data_plan import DataPlan
from pipelines.dvc_store import DvcStore
from pipelines.installation import Installation
from pipelines.lakefs_store import open_lakefs
from pipelines.snapshot_store import SnapshotStore


def store_of(installation: Installation) -> SnapshotStore:
    """The store that is configured. Raises ConfigurationError."""
    plan = owned_section(installation.configuration, "data", DataPlan)
    if plan.lakefs is not None:
        return open_lakefs(installation.settings, plan.lakefs)
    return DvcStore(installation.settings, plan)
