"""A fitted tabular model as an MLflow model folder that runs no code when it is read, and the name
that it is served by.

The name is made from what the model learnt and wants, never from when it was saved: skops writes
memory addresses and times into its files, so its digest is of what they hold.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import orjson

from gateway.tabular_model import TRUSTED

if TYPE_CHECKING:
    import pandas as pd

NAME_DIGITS = 12
EXAMPLE_ROWS = 5
SKOPS, UBJ = "model.skops", "model.ubj"
ADDRESS = "__id__"


def save_estimator(
    model: Any, folder: Path, example: "pd.DataFrame", metadata: Mapping[str, Any]
) -> None:
    """Save a scikit-learn classifier; MLflow's `predict` gives both classes' probabilities."""
    import mlflow.sklearn
    from mlflow.models import infer_signature

    mlflow.sklearn.save_model(
        model,
        str(folder),
        serialization_format="skops",
        skops_trusted_types=list(TRUSTED),
        pyfunc_predict_fn="predict_proba",
        signature=infer_signature(example, model.predict_proba(example)),
        input_example=example,
        pip_requirements=_pins("mlflow", "scikit-learn", "skops", "numpy", "pandas"),
        metadata=dict(metadata),
    )


def save_booster(
    model: Any, folder: Path, example: "pd.DataFrame", metadata: Mapping[str, Any]
) -> None:
    """Save an XGBoost booster; MLflow's `predict` gives the positive class's probabilities."""
    import mlflow.xgboost
    import xgboost
    from mlflow.models import infer_signature

    mlflow.xgboost.save_model(
        model,
        str(folder),
        signature=infer_signature(example, model.predict(xgboost.DMatrix(example))),
        input_example=example,
        model_format="ubj",
        pip_requirements=_pins("mlflow", "xgboost-cpu", "numpy", "pandas"),
        metadata=dict(metadata),
    )


def model_digest(folder: Path, columns: Sequence[str]) -> str:
    """SHA-256, in hex, of what a saved model has learnt and of the columns it wants."""
    digest = hashlib.sha256(orjson.dumps(list(columns)))
    if (folder / SKOPS).exists():
        digest.update(_skops_content(folder / SKOPS))
    else:
        digest.update((folder / UBJ).read_bytes())
    return digest.hexdigest()


def served_name(name: str, digest: str) -> str:
    """The name of a model with `digest`, as it is served."""
    return f"{name}-{digest[:NAME_DIGITS]}"


def _skops_content(file: Path) -> bytes:
    """The schema of a skops file, with arrays named for their content and without addresses."""
    with ZipFile(file) as archive:
        names = {
            name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()
        }
        schema = json.loads(archive.read("schema.json"))
    return orjson.dumps(_without_addresses(schema, names), option=orjson.OPT_SORT_KEYS)


def _without_addresses(node: Any, names: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {
            key: names.get(value, value) if key == "file" else _without_addresses(value, names)
            for key, value in node.items()
            if key != ADDRESS
        }
    if isinstance(node, list):
        return [_without_addresses(one, names) for one in node]
    return node


def _pins(*packages: str) -> list[str]:
    return [f"{package}=={version(package)}" for package in packages]
