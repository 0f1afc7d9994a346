"""One version of a tabular model as the KServe model server answers for it."""

from asyncio import get_running_loop
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from kserve import Model

from gateway.feature_reads import typed_frame
from gateway.feature_schema import Column, FeatureSchema
from gateway.prediction_forms import PROBABILITY
from gateway.served_columns import Columns
from gateway.tabular_model import ModelUnusable, TabularModel
from gateway.tensors import BOOL, BYTES, FLOAT, INTEGER, tensors_of_inputs

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 65_536
DATATYPES = {
    "string": BYTES, "float64": FLOAT, "int64": INTEGER, "bool": BOOL, "timestamp": BYTES,
}  # fmt: skip


class ServedVersion(Model):  # type: ignore[misc]  # kserve's classes are not typed
    """A version, ready once it is made. `pool`: threads that look up and compute."""

    def __init__(self, model: TabularModel, columns: Columns, pool: Executor):
        super().__init__(model.name)
        self._model, self._pool = model, pool
        self._schema, self._read = columns.schema, columns.read
        self._features = [self._require(name) for name in model.columns]
        self.ready = True

    async def predict(
        self, payload: Mapping[str, Any], _headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Answer a request of the protocol, as JSON has it: the probability of each row and, with
        the parameter `features`, what it was made from.

        Raises:
            BadRequest, SchemaMismatch: a tensor or a column does not fit.
            FeaturesUnavailable: the online store does not answer.
        """
        return await get_running_loop().run_in_executor(self._pool, self._answer, payload)

    def probabilities(self, columns: Mapping[str, Sequence[Any]]) -> list[float]:
        """The answer to rows of features, as they are."""
        frame = typed_frame(FeatureSchema("", tuple(self._features)), columns)
        answer: list[float] = self._model.probabilities(frame).tolist()
        return answer

    def get_input_types(self) -> list[dict[str, Any]]:
        """What a request brings: keys and request columns, else every column."""
        asked = [self._require(name) for name in self._schema.asked]
        return [_described(column) for column in asked or self._features]

    def get_output_types(self) -> list[dict[str, Any]]:
        """The probability, and the features that may be asked for."""
        probability = {"name": PROBABILITY, "datatype": FLOAT, "shape": [-1]}
        return [probability, *(_described(column) for column in self._features)]

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tensors = tensors_of_inputs(request.get("inputs"), MOST_ROWS)
        names = [tensor.name for tensor in tensors]
        rows = [
            dict(zip(names, values, strict=True))
            for values in zip(*(tensor.values for tensor in tensors), strict=True)
        ]
        frame = self._read(self._schema.parse(rows))
        outputs = [_output(PROBABILITY, FLOAT, self._model.probabilities(frame).tolist())]
        parameters = request.get("parameters")
        if isinstance(parameters, Mapping) and parameters.get("features") is True:
            outputs += [_feature(frame, column) for column in self._features]
        return {"id": request.get("id") or "", "model_name": self.name, "outputs": outputs}

    def _require(self, name: str) -> Column:
        column = self._schema.column(name)
        if column is None:
            raise ModelUnusable(
                f"{self.name}: was fitted on {name!r}, which feature service "
                f"{self._schema.service!r} does not have; train it on the features of now"
            )
        return column


def _feature(frame: "pd.DataFrame", column: Column) -> dict[str, Any]:
    values = frame[column.name].tolist()
    datatype = BYTES if column.type in ("string", "timestamp") else FLOAT  # as the model sees it
    known = [None if value != value else value for value in values]
    return _output(column.name, datatype, known)


def _output(name: str, datatype: str, values: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": [len(values)], "datatype": datatype, "data": values}


def _described(column: Column) -> dict[str, Any]:
    return {"name": column.name, "datatype": DATATYPES[column.type], "shape": [-1]}
