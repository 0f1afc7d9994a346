"""Models as they are loaded for serving: as MLflow would ask them, and never by running code."""

import shutil

import numpy as np
import pytest
import yaml
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import FunctionTransformer

from gateway.tabular_model import ModelUnusable, load_model
from pipelines.tabular_candidates import CANDIDATES
from tests.pipelines.tabular_data import flights, rows_of

ROWS = rows_of(flights(days=20))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # MLflow's, while it is imported


@pytest.fixture(scope="module", params=CANDIDATES)
def folder(request, tmp_path_factory):
    """A calibrated model of each algorithm."""
    candidate = CANDIDATES[request.param]
    model = candidate.fit(candidate.first, ROWS.features, ROWS.labels, 0)
    model = candidate.calibrate(model, ROWS.features, ROWS.labels)
    out = tmp_path_factory.mktemp("models") / "flight-delay-0123456789ab"
    candidate.save(model, out, ROWS.features.head(5), {"feature_service": "arrival_delay"})
    return out


def test_it_answers_as_mlflow_does(folder):
    model = load_model(folder)
    import mlflow.pyfunc

    asked = ROWS.features.sample(200, random_state=0)
    found = mlflow.pyfunc.load_model(str(folder)).predict(asked)
    expected = np.asarray(found) if np.ndim(found) == 1 else np.asarray(found)[:, 1]
    answers = model.probabilities(asked)
    assert answers.dtype == float
    assert answers == pytest.approx(expected, abs=1e-7)
    assert model.name == "flight-delay-0123456789ab"
    assert model.columns == ROWS.names
    assert model.metadata["feature_service"] == "arrival_delay"


def test_columns_are_taken_by_name_and_one_that_is_missing_is_named(folder):
    model, asked = load_model(folder), ROWS.features.head(3)
    turned = asked[asked.columns[::-1]].assign(more=1.0)
    assert (model.probabilities(turned) == model.probabilities(asked)).all()
    with pytest.raises(ValueError, match="column 'wind' is missing"):
        model.probabilities(asked.drop(columns="wind"))


def test_a_damaged_file_is_refused(folder, tmp_path):
    damaged = tmp_path / folder.name
    shutil.copytree(folder, damaged)
    for file in (*damaged.glob("model.skops"), *damaged.glob("model.ubj")):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelUnusable, match="cannot be read"):
        load_model(damaged)


def saved(model, folder, **options):
    import mlflow.sklearn
    from mlflow.models import infer_signature

    signature = infer_signature(ROWS.features.head())
    mlflow.sklearn.save_model(
        model, str(folder), **{"signature": signature, "pip_requirements": [], **options}
    )
    return folder


def fitted(model):
    return model.fit(ROWS.features.fillna(0), ROWS.labels)


def test_a_pickle_is_refused(tmp_path):
    folder = saved(fitted(LogisticRegression()), tmp_path / "m", serialization_format="cloudpickle")
    with pytest.raises(ModelUnusable, match="would run code from the file"):
        load_model(folder)


def test_what_the_file_asks_to_be_trusted_is_not_heard(tmp_path):
    from sklearn.pipeline import make_pipeline

    chain = make_pipeline(FunctionTransformer(np.log1p), LogisticRegression())
    kinds = ["numpy.log1p", "sklearn.preprocessing._function_transformer.FunctionTransformer"]
    folder = saved(fitted(chain), tmp_path / "m", skops_trusted_types=kinds)
    description = folder / "MLmodel"
    assert yaml.safe_load(description.read_text())["flavors"]["sklearn"]["skops_trusted_types"]
    load_model(folder)  # a ufunc is trusted by skops itself
    near = saved(
        fitted(KNeighborsClassifier()),
        tmp_path / "n",
        skops_trusted_types=[
            "sklearn.metrics._dist_metrics.EuclideanDistance64",
            "sklearn.neighbors._kd_tree.KDTree",
            "sklearn.neighbors._kd_tree.KDTree64",
        ],
    )
    with pytest.raises(ModelUnusable, match="types that are not trusted"):
        load_model(near)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (LinearRegression(), {}, "a classifier of 0 and 1 that has predict_proba"),
        (LogisticRegression(), {"signature": None}, "no signature with named columns"),
    ],
)
def test_what_gives_no_probability_or_names_no_columns_is_refused(
    model, options, message, tmp_path
):
    folder = saved(fitted(model), tmp_path / "m", serialization_format="skops", **options)
    with pytest.raises(ModelUnusable, match=message):
        load_model(folder)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelUnusable, match="not a model that can be read"):
        load_model(tmp_path)
    (tmp_path / "MLmodel").write_text("flavors: {pytorch: {}}\nsignature: {inputs: '[]'}\n")
    with pytest.raises(ModelUnusable, match="has the flavours pytorch; one of sklearn, xgboost"):
        load_model(tmp_path)
