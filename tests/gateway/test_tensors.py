"""Columns out of JSON: of rows, and of the Open Inference Protocol's tensors."""

import subprocess
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.configuration import Limits
from gateway.errors import BadRequest, GatewayError, UpstreamBroken
from gateway.prediction_forms import INFER, PREDICT, parse_predicted, read_infer, read_predict
from gateway.tensors import Tensor, tensors_of_inputs, tensors_of_instances

MOST = 100
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "datatype", "data", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
COLUMNS = st.dictionaries(
    st.text("abcdef_", min_size=1, max_size=8),
    st.sampled_from(["BYTES", "BOOL", "INT64", "FP64"]),
    min_size=1,
    max_size=5,
)
VALUES = {
    "BYTES": st.text(max_size=9),
    "BOOL": st.booleans(),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "FP64": st.floats(allow_nan=False, allow_infinity=False) | st.none(),
}


def tensor(name: str = "x", **fields: Any) -> dict[str, Any]:
    return {"name": name, "shape": [2], "datatype": "FP64", "data": [1, 2.5], **fields}


@given(st.data())
def test_rows_come_back_from_their_columns(data):
    columns = data.draw(COLUMNS)
    count = data.draw(st.integers(1, 6))
    rows = [{name: data.draw(VALUES[kind]) for name, kind in columns.items()} for _ in range(count)]
    tensors = tensors_of_instances(rows, MOST)
    assert [tensor.name for tensor in tensors] == list(columns)
    again = tensors_of_inputs([tensor.as_input() for tensor in tensors], MOST)
    assert again == tensors
    assert [
        dict(zip(columns, row, strict=True))
        for row in zip(*(one.values for one in again), strict=True)
    ] == rows


@given(ANYTHING)
def test_any_json_is_read_or_refused(value):
    for read in (tensors_of_inputs, tensors_of_instances):
        try:
            tensors = read(value, MOST)
        except BadRequest as error:
            assert error.message and error.param
        else:
            assert len({len(one.values) for one in tensors}) == 1


def test_a_nested_column_is_a_column():
    given = [tensor(shape=[2, 1], data=[[1], [None]])]
    assert tensors_of_inputs(given, MOST) == [Tensor("x", "FP64", [1, None])]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"shape": [3]}, "inputs[0].data"),
        ({"shape": [1, 2]}, "inputs[0].shape"),
        ({"shape": [2, 1, 1]}, "inputs[0].shape"),
        ({"shape": "2"}, "inputs[0].shape"),
        ({"shape": [True]}, "inputs[0].shape"),
        ({"shape": [0], "data": []}, "inputs"),
        ({"datatype": "FP16"}, "inputs[0].datatype"),
        ({"datatype": 7}, "inputs[0].datatype"),
        ({"datatype": "INT64"}, "inputs[0].data"),
        ({"datatype": "UINT8", "data": [1, 256]}, "inputs[0].data"),
        ({"datatype": "BYTES"}, "inputs[0].data"),
        ({"datatype": "BOOL"}, "inputs[0].data"),
        ({"data": [1, True]}, "inputs[0].data"),
        ({"data": [1, "2"]}, "inputs[0].data"),
        ({"data": None}, "inputs[0].data"),
        ({"datatype": "BYTES", "data": ["a", None]}, "inputs[0].data"),
        ({"name": ""}, "inputs[0]"),
        ({"name": "a\nb"}, "inputs[0]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(fields, named):
    with pytest.raises(BadRequest) as refused:
        tensors_of_inputs([tensor(**fields)], MOST)
    assert refused.value.param == named
    assert "x" in refused.value.message or "name" in fields or named == "inputs"


def test_tensors_that_do_not_fit_together_are_named():
    with pytest.raises(BadRequest, match="two tensors 'x'"):
        tensors_of_inputs([tensor(), tensor()], MOST)
    with pytest.raises(BadRequest, match="'y' has 1 rows, 'x' has 2"):
        tensors_of_inputs([tensor(), tensor("y", shape=[1], data=[1])], MOST)
    with pytest.raises(BadRequest, match=r"inputs\[0\] has no 'data'.*binary"):
        tensors_of_inputs([{"name": "x", "shape": [1], "datatype": "FP64"}], MOST)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"a": 1}, {"a": "x"}], "instances[1].a"),
        ([{"a": None}, {"a": "x"}], "instances[1].a"),
        ([{"a": True}, {"a": 1}], "instances[1].a"),
        ([{"a": 1}, {"b": 1}], "instances[1]"),
        ([{"a": 1}, {"a": 1, "b": 1}], "instances[0]"),
        ([{"a": [1]}], "instances[0].a"),
        ([{"a": "x" * 513}], "instances[0].a"),
        ([{}], "instances[0]"),
        ([1], "instances[0]"),
        ([{"a": 1}] * (MOST + 1), "instances"),
    ],
)
def test_rows_that_do_not_fit_are_named(rows, named):
    with pytest.raises(BadRequest) as refused:
        tensors_of_instances(rows, MOST)
    assert refused.value.param == named


def test_a_number_may_be_missing_and_a_column_may_mix_whole_and_other_numbers():
    (column,) = tensors_of_instances([{"a": 1}, {"a": 2.5}, {"a": None}], MOST)
    assert column == Tensor("a", "FP64", [1, 2.5, None])


def test_what_is_no_field_of_ours_is_refused_by_name():
    with pytest.raises(BadRequest, match="Unknown field 'instance'"):
        read_predict({"instance": []}, Limits())
    with pytest.raises(BadRequest, match="'instances' is missing"):
        read_predict({"user": "u"}, Limits())
    with pytest.raises(BadRequest, match="'user' must be a string"):
        read_infer({"inputs": [tensor()], "parameters": {"user": 7}}, Limits())
    with pytest.raises(BadRequest, match="binary"):
        read_infer({"inputs": [tensor()], "parameters": {"binary_data_output": True}}, Limits())


def test_outputs_are_sent_as_they_are_asked_for():
    answer = orjson.dumps(
        {"outputs": [tensor("probability", data=[0.25, 0.5]), tensor("hour", data=[1, None])]}
    )
    predicted = parse_predicted(answer, 2, ("id-1", "flight-delay", "flight-delay-ab"))

    def names(**fields: Any) -> list[str]:
        question = read_infer({"inputs": [tensor()], **fields}, Limits())
        return [
            output["name"] for output in orjson.loads(INFER.write(question, predicted))["outputs"]
        ]

    assert names() == ["probability"]
    assert names(parameters={"features": True}) == ["probability", "hour"]
    assert names(outputs=[{"name": "hour"}]) == ["hour"]
    with pytest.raises(BadRequest, match="no 'humid'"):
        names(outputs=[{"name": "humid"}])
    question = read_predict({"instances": [{"a": 1}, {"a": 2}]}, Limits())
    assert orjson.loads(PREDICT.write(question, predicted)) == {
        "id": "id-1",
        "model": "flight-delay",
        "version": "flight-delay-ab",
        "predictions": [{"probability": 0.25}, {"probability": 0.5}],
        "features": [{"hour": 1}, {"hour": None}],
    }


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"outputs": [{"name": "probability"}]}'])
def test_an_answer_that_is_none_is_the_servers_fault(answer):
    with pytest.raises(UpstreamBroken):
        parse_predicted(answer, 1, ("", "", ""))
    short = orjson.dumps({"outputs": [tensor("probability")]})
    with pytest.raises(UpstreamBroken, match="3 probabilities"):
        parse_predicted(short, 3, ("", "", ""))


def test_errors_have_the_shape_of_the_protocol():
    error = GatewayError("It broke.")
    assert orjson.loads(error.json("/v2/models/x/infer")) == {"error": "It broke."}
    assert orjson.loads(error.json("/v1/predict/x"))["error"]["message"] == "It broke."


def test_a_worker_holds_none_of_what_a_model_needs():
    heavy = ["kserve", "mlflow", "feast", "pandas", "numpy", "sklearn", "torch"]
    program = f"import sys, gateway.worker; print(sorted({{*{heavy}}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
