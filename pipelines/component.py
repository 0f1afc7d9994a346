"""What a Kubeflow component calls: a stage, with the spec as text and artifacts' paths.

A pipeline's parameters are texts, while a stage reads its spec from a file.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipelines import stages

NONE: Mapping[str, bool] = {}


def run_stage(
    stage: str, spec: str, out: str, options: Mapping[str, bool] = NONE, **inputs: str
) -> None:
    """Run one stage of `pipelines.stages` into the path `out`; `inputs` are paths by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "spec.yaml")
        path.write_text(spec)
        given = {name: Path(where) for name, where in inputs.items()}
        getattr(stages, stage)(spec=path, out=Path(out), **given, **options)
