"""XGBoost models, with probabilities that hold later on.

Platt's scaling bends a model's log-odds z to `slope * z + intercept`. Of boosted trees that gives
boosted trees again: their leaves times the slope, and another start. So what was calibrated is one
file in XGBoost's own format, which runs no code when it is read and is as quick as it was.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from xgboost import Booster

Array = Any  # numpy's arrays; its types are not known to the type checker
THREADS = 1  # sums of floats in another order would give another model; see tabular_training
ROUNDS = "rounds"


def fit(parameters: Mapping[str, Any], rows: "pd.DataFrame", labels: Array, seed: int) -> "Booster":
    """Trees for the log-odds of the label; `rounds` of them."""
    import xgboost

    given = dict(parameters)
    rounds = given.pop(ROUNDS)
    fixed = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "nthread": THREADS,
        "seed": seed,
        "base_score": float(np.mean(labels)),
    }
    return xgboost.train(fixed | given, xgboost.DMatrix(rows, label=labels), rounds)


def probabilities(model: "Booster", rows: "pd.DataFrame") -> Array:
    """Of the positive class, per row."""
    import xgboost

    return model.predict(xgboost.DMatrix(rows)).astype(float)


def calibrate(model: "Booster", rows: "pd.DataFrame", labels: Array) -> "Booster":
    """The model with Platt's scaling, fitted on rows that it has not seen."""
    import xgboost
    from sklearn.linear_model import LogisticRegression

    odds = model.predict(xgboost.DMatrix(rows), output_margin=True).reshape(-1, 1)
    scaling = LogisticRegression(C=np.inf).fit(odds, labels)
    return scaled(model, float(scaling.coef_[0, 0]), float(scaling.intercept_[0]))


def scaled(model: "Booster", slope: float, intercept: float) -> "Booster":
    """The model whose log-odds are `slope * z + intercept`."""
    import xgboost

    content = json.loads(bytes(model.save_raw("json")))
    learner = content["learner"]
    for tree in learner["gradient_booster"]["model"]["trees"]:
        leaves = [place for place, left in enumerate(tree["left_children"]) if left == -1]
        for place in leaves:
            tree["split_conditions"][place] *= slope  # where a leaf keeps its value
        tree["base_weights"] = [weight * slope for weight in tree["base_weights"]]
    start = float(str(learner["learner_model_param"]["base_score"]).strip("[]"))
    odds = slope * np.log(start / (1 - start)) + intercept
    learner["learner_model_param"]["base_score"] = f"[{1 / (1 + np.exp(-odds)):.9E}]"
    made = xgboost.Booster()
    made.load_model(bytearray(json.dumps(content).encode()))
    return made
