"""The algorithms that a tabular model is chosen from, each with the parameters that are tried.

All learn the log-odds of a yes from numbers, of which some may be missing. The same rows and seed
give the same model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines import boosting
from pipelines.tabular_package import save_booster, save_estimator

if TYPE_CHECKING:
    import pandas as pd
    from numpy.random import Generator

Array = Any  # numpy's arrays; its types are not known to the type checker
Model = Any  # an estimator of scikit-learn, or an XGBoost booster
Parameters = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to learn.

    Attributes:
        first: the parameters of the first trial.
        draw: those of another one.
        fit: a model from parameters, rows, labels and a seed.
        probabilities: of the positive class, per row.
        calibrate: the model, its probabilities brought in line with rows it has not seen.
        save: writes the model as MLflow does into a folder that is not there.
    """

    first: Parameters
    draw: Callable[["Generator"], Parameters]
    fit: Callable[[Parameters, "pd.DataFrame", Array, int], Model]
    probabilities: Callable[[Model, "pd.DataFrame"], Array]
    calibrate: Callable[[Model, "pd.DataFrame", Array], Model]
    save: Callable[..., None]


def _logistic(parameters: Parameters, rows: "pd.DataFrame", labels: Array, seed: int) -> Model:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chain = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True),
        StandardScaler(),
        LogisticRegression(max_iter=1000, random_state=seed, **parameters),
    )
    return chain.fit(rows, labels)


def _histogram(parameters: Parameters, rows: "pd.DataFrame", labels: Array, seed: int) -> Model:
    from sklearn.ensemble import HistGradientBoostingClassifier

    # Early stopping would hold back rows at random, not the latest ones.
    model = HistGradientBoostingClassifier(early_stopping=False, random_state=seed, **parameters)
    return model.fit(rows, labels)


def _estimated(model: Model, rows: "pd.DataFrame") -> Array:
    return model.predict_proba(rows)[:, 1]


def _platt(model: Model, rows: "pd.DataFrame", labels: Array) -> Model:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    return CalibratedClassifierCV(FrozenEstimator(model), method="sigmoid").fit(rows, labels)


def _log_uniform(draw: "Generator", low: float, high: float) -> float:
    return float(low * (high / low) ** draw.random())


CANDIDATES: Mapping[str, Candidate] = {
    "logistic": Candidate(
        first={"C": 1.0},
        draw=lambda draw: {"C": _log_uniform(draw, 1e-4, 10)},
        fit=_logistic,
        probabilities=_estimated,
        calibrate=_platt,
        save=save_estimator,
    ),
    "histogram": Candidate(
        first={"max_iter": 120, "learning_rate": 0.06, "l2_regularization": 1.0},
        draw=lambda draw: {
            "max_iter": int(draw.integers(40, 200)),
            "learning_rate": _log_uniform(draw, 0.02, 0.15),
            "max_leaf_nodes": int(draw.integers(7, 48)),
            "l2_regularization": _log_uniform(draw, 0.1, 30),
            "min_samples_leaf": int(draw.integers(20, 200)),
        },
        fit=_histogram,
        probabilities=_estimated,
        calibrate=_platt,
        save=save_estimator,
    ),
    "xgboost": Candidate(
        first={"rounds": 150, "eta": 0.06, "max_depth": 6, "min_child_weight": 20, "lambda": 1.0},
        draw=lambda draw: {
            "rounds": int(draw.integers(60, 250)),
            "eta": _log_uniform(draw, 0.02, 0.15),
            "max_depth": int(draw.integers(3, 8)),
            "min_child_weight": _log_uniform(draw, 1, 200),
            "lambda": _log_uniform(draw, 0.1, 30),
            "colsample_bytree": float(draw.uniform(0.5, 1)),
            "subsample": float(draw.uniform(0.6, 1)),
        },
        fit=boosting.fit,
        probabilities=boosting.probabilities,
        calibrate=boosting.calibrate,
        save=save_booster,
    ),
}  # fmt: skip
