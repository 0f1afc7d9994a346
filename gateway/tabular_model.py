"""A tabular model as it is served: an MLflow model folder, loaded without running code from it.

Two of MLflow's flavours are read, without MLflow: scikit-learn's, saved by skops, and XGBoost's own
format. A skops file names the types that it is made of. They must be among those that are trusted
here; what the file itself asks to be trusted is not heard. A pickle is refused: reading one runs
whatever its writer wanted.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import yaml

if TYPE_CHECKING:
    import pandas as pd

DESCRIPTION = "MLmodel"
# What scikit-learn's own estimators are made of beside what skops trusts by itself.
TRUSTED = (
    "numpy.dtype",
    "sklearn._loss.link.Interval",
    "sklearn._loss.link.LogitLink",
    "sklearn._loss.loss.HalfBinomialLoss",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.compose._column_transformer._RemainderColsList",
    "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
)

BROKEN = (
    OSError, BadZipFile, ValueError, TypeError, LookupError, AttributeError, ImportError,
)  # fmt: skip

Array = Any  # numpy's arrays; its types are not known to the type checker
Predict = Callable[["pd.DataFrame"], Array]


class ModelUnusable(ValueError):
    """A folder that holds no model that may be loaded; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class TabularModel:
    """A model that was loaded.

    Attributes:
        columns: what it wants, in its order.
        metadata: what its folder says of it, such as `feature_service` and `dataset_id`.
    """

    name: str
    columns: tuple[str, ...]
    metadata: Mapping[str, Any]
    predict: Predict

    def probabilities(self, rows: "pd.DataFrame") -> Array:
        """The probability of the positive class per row, float64.

        Raises: ValueError where a column is missing.
        """
        missing = [name for name in self.columns if name not in rows]
        if missing:
            raise ValueError(
                f"{self.name}: column {missing[0]!r} is missing, which it was fitted on"
            )
        return self.predict(rows[list(self.columns)])


def load_model(folder: Path) -> TabularModel:
    """The model in `folder`, which is named as it is served.

    Raises: ModelUnusable.
    """
    try:
        described = yaml.safe_load((folder / DESCRIPTION).read_text())
        flavours = described["flavors"]
        columns = tuple(one["name"] for one in json.loads(described["signature"]["inputs"]))
        metadata = described.get("metadata") or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelUnusable(f"{folder}: not a model that can be read ({error})") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelUnusable(
            f"{folder / DESCRIPTION}: has no flavours, or no signature with named columns; save "
            "the model with signature=mlflow.models.infer_signature(rows)"
        ) from error
    for flavour, loader in LOADERS.items():
        if flavour in flavours:
            predict = loader(folder, flavours[flavour])
            return TabularModel(folder.name, columns, metadata, predict)
    raise ModelUnusable(
        f"{folder}: has the flavours {', '.join(flavours)}; one of {', '.join(LOADERS)} is wanted"
    )


def _sklearn(folder: Path, flavour: Mapping[str, Any]) -> Predict:
    form = flavour.get("serialization_format", "pickle")
    if form != "skops":
        raise ModelUnusable(
            f"{folder}: was saved as {form}, and reading that would run code from the file; save "
            "it with serialization_format='skops'"
        )
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    file = folder / str(flavour.get("pickled_model", "model.skops"))
    try:
        estimator = skops.io.load(file, trusted=list(TRUSTED))
    except UntrustedTypesFoundException as error:
        raise ModelUnusable(f"{file}: holds types that are not trusted: {error}") from error
    except BROKEN as error:
        raise ModelUnusable(f"{file}: cannot be read: {error}") from error
    classes = [int(one) for one in getattr(estimator, "classes_", ())]
    if classes != [0, 1] or not hasattr(estimator, "predict_proba"):
        raise ModelUnusable(
            f"{file}: a {type(estimator).__name__}; a classifier of 0 and 1 that has predict_proba "
            "is wanted"
        )
    return lambda rows: estimator.predict_proba(rows)[:, 1]


def _xgboost(folder: Path, flavour: Mapping[str, Any]) -> Predict:
    import xgboost

    file = folder / str(flavour.get("data", "model.ubj"))
    booster = xgboost.Booster()
    try:
        booster.load_model(file)
    except (xgboost.core.XGBoostError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelUnusable(f"{file}: cannot be read: {first}") from error
    booster.set_param({"nthread": 1})  # a request has few rows; threads would fight over the cores

    def predict(rows: "pd.DataFrame") -> Array:
        # The columns are in order, and a DMatrix would take longer to make than to ask.
        return booster.inplace_predict(rows.to_numpy(float), validate_features=False).astype(float)

    return predict


LOADERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Predict]] = {
    "sklearn": _sklearn,
    "xgboost": _xgboost,
}
