"""Drills: a candidate that is known to be bad, to see live traffic get rid of it by itself."""

import shutil

from gateway.errors import NotFound
from pipelines.champion import find_version
from pipelines.installation import Installation
from pipelines.lifecycle import register_version
from pipelines.spec import Spec


def register_ruined(
    installation: Installation, spec: Spec, version: str, reason: str
) -> tuple[str, str]:
    """Register a spoilt copy of a version's adapter, without a verdict.

    Nothing gives it traffic but an experiment that says why it goes unjudged. Returns its version
    and the name that it is served by. Raises NotFound for a version that is not known.
    """
    from rlhf.adapter import inspect, ruined, served_name

    with installation.database.session() as session:
        row = find_version(session, spec.name, version)
    if row is None:
        raise NotFound(f"{spec.name} has no version {version!r}", param="version")
    fresh = installation.adapters_dir / f".{row.served_name}.ruined"
    shutil.rmtree(fresh, ignore_errors=True)
    info = inspect(ruined(installation.adapters_dir / row.served_name, fresh))
    served = served_name(spec.name, info)
    kept = installation.adapters_dir / served
    if kept.exists():
        shutil.rmtree(fresh)
    else:
        fresh.rename(kept)
    made = register_version(
        installation,
        spec,
        row.training_id,
        verdict_id=None,
        served=(served, info.digest),
        description=f"{reason}: a spoilt copy of version {version}",
    )
    return made, served
