"""One version of a tabular model as the KServe model server answers for it."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from kserve import Model

from gateway.errors import BadRequest
from gateway.feature_reads import FeaturesUnavailable, typed_frame
from gateway.feature_schema import Column, FeatureSchema, SchemaMismatch
from gateway.prediction_batch import Batches
from gateway.prediction_forms import PROBABILITY
from gateway.served_columns import Columns
from gateway.tabular_model import ModelUnusable, TabularModel
from gateway.tensors import BOOL, BYTES, FLOAT, INTEGER, tensors_of_inputs

if TYPE_CHECKING:
    import pandas as pd

Output = tuple[str, str, list[Any]]  # name, datatype, a value for each row
MOST_ROWS = 65_536
DATATYPES = {
    "string": BYTES, "float64": FLOAT, "int64": INTEGER, "bool": BOOL, "timestamp": BYTES,
}  # fmt: skip


class ServedVersion(Model):  # type: ignore[misc]  # kserve's classes are not typed
    """A version, ready once it is made. `pool`: threads that look up and compute."""

    def __init__(self, model: TabularModel, columns: Columns, pool: Executor):
        super().__init__(model.name)
        self._model, self._batches = model, Batches(self._answer, pool)
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
        answer: dict[str, Any] = await self._batches.ask(payload)
        return answer

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

    def _answer(self, requests: Sequence[Mapping[str, Any]]) -> list[Any]:
        """An answer for each request, or why it has none."""
        answers: list[Any] = [None] * len(requests)
        parsed: dict[int, list[dict[str, Any]]] = {}
        alike: dict[tuple[str, ...], list[int]] = {}  # places of those that bring the same columns
        for place, request in enumerate(requests):
            try:
                rows = parsed[place] = self._rows(request)
                alike.setdefault(tuple(rows[0]), []).append(place)
            except (BadRequest, SchemaMismatch) as error:
                answers[place] = error
        for places in alike.values():
            try:
                outputs = self._outputs([row for place in places for row in parsed[place]])
            except (FeaturesUnavailable, SchemaMismatch) as error:
                for place in places:
                    answers[place] = error
                continue
            end = 0
            for place in places:
                start, end = end, end + len(parsed[place])
                answers[place] = self._shown(requests[place], outputs, slice(start, end))
        return answers

    def _rows(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        tensors = tensors_of_inputs(request.get("inputs"), MOST_ROWS)
        names = [tensor.name for tensor in tensors]
        values = zip(*(tensor.values for tensor in tensors), strict=True)
        return self._schema.parse([dict(zip(names, row, strict=True)) for row in values])

    def _outputs(self, rows: Sequence[Mapping[str, Any]]) -> list[Output]:
        """The probability of each row, then the columns that it was made from."""
        frame = self._read(rows)
        probabilities = self._model.probabilities(frame).tolist()
        return [
            (PROBABILITY, FLOAT, probabilities),
            *((column.name, *_seen(frame, column)) for column in self._features),
        ]

    def _shown(
        self, request: Mapping[str, Any], outputs: Sequence[Output], part: slice
    ) -> dict[str, Any]:
        parameters = request.get("parameters")
        features = isinstance(parameters, Mapping) and parameters.get("features") is True
        shown = [
            {"name": name, "shape": [len(values[part])], "datatype": datatype, "data": values[part]}
            for name, datatype, values in (outputs if features else outputs[:1])
        ]
        return {"id": request.get("id") or "", "model_name": self.name, "outputs": shown}

    def _require(self, name: str) -> Column:
        column = self._schema.column(name)
        if column is None:
            raise ModelUnusable(
                f"{self.name}: was fitted on {name!r}, which feature service "
                f"{self._schema.service!r} does not have; train it on the features of now"
            )
        return column


def _seen(frame: "pd.DataFrame", column: Column) -> tuple[str, list[Any]]:
    """A column as the model sees it; None where a value is missing."""
    datatype = BYTES if column.type in ("string", "timestamp") else FLOAT
    return datatype, [None if value != value else value for value in frame[column.name].tolist()]


def _described(column: Column) -> dict[str, Any]:
    return {"name": column.name, "datatype": DATATYPES[column.type], "shape": [-1]}
