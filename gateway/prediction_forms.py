"""The two forms in which a tabular model is asked, and how each is answered.

`predict` is ours: rows of entity and request columns, features looked up by the model server.
`infer` is the Open Inference Protocol's, whose `parameters` may name `user` and `episode_id`.
The log has one form of answers, that of `predict`, with the features that were used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway import wire
from gateway.configuration import Limits
from gateway.errors import BadRequest, UpstreamBroken
from gateway.tensors import Tensor, tensors_of_inputs, tensors_of_instances

PROBABILITY = "probability"
NAMED_BY_CLIENTS = ("model_name", "model_version")  # KServe's own says it again; the path counts
Columns = Mapping[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Question:
    """What a request asks.

    Attributes:
        own_id: the client's own id of it, which the protocol gives back.
        outputs: names of the outputs that it wants; None: all but the features.
        features: whether it wants the features too.
    """

    tensors: list[Tensor]
    user: str | None = None
    episode_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    own_id: str | None = None
    outputs: tuple[str, ...] | None = None
    features: bool = False

    @property
    def rows(self) -> int:
        """How many predictions it asks for."""
        return len(self.tensors[0].values)

    def as_body(self, request_id: str) -> bytes:
        """The request to the model server."""
        return orjson.dumps(
            {
                "id": request_id,
                "parameters": {"features": True},
                "inputs": [tensor.as_input() for tensor in self.tensors],
            }
        )


@dataclass(frozen=True, slots=True)
class Predicted:
    """The model server's answer: the probability of each row, and the other outputs by name."""

    request_id: str
    model: str
    version: str
    probabilities: list[Any]
    outputs: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Form:
    """One form: its name in the log, how its body is read, and how it is answered."""

    name: str
    read: Callable[[Mapping[str, Any], Limits], Question]
    write: Callable[[Question, Predicted], bytes]


def parse_predicted(data: bytes, rows: int, names: tuple[str, str, str]) -> Predicted:
    """Read an answer for `rows` rows; `names`: request id, model's name, version's name.

    Raises:
        UpstreamBroken: it is not such an answer.
    """
    try:
        outputs = [dict(output) for output in orjson.loads(data)["outputs"]]
        columns = {str(output["name"]): output["data"] for output in outputs}
        if any(len(column) != rows for column in columns.values()):
            raise ValueError("another number of rows")
        return Predicted(*names, columns[PROBABILITY], outputs)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise UpstreamBroken(
            f"The model server's answer is not {rows} probabilities in the inference protocol."
        ) from error


def read_predict(body: Mapping[str, Any], limits: Limits) -> Question:
    """Read `{"instances": [{…}], "user", "episode_id", "tags"}`. Raises BadRequest."""
    _known_fields(body, {*wire.PREDICTION, "instances"})
    wire.validate(body, wire.PREDICTION, limits, strict=False)
    if "instances" not in body:
        raise BadRequest("'instances' is missing.", param="instances", code="missing_field")
    return Question(
        tensors_of_instances(body["instances"], limits.instances),
        user=body.get("user"),
        episode_id=body.get("episode_id"),
        tags=body.get("tags") or {},
    )


def write_predict(_question: Question, predicted: Predicted) -> bytes:
    """A prediction and the features of each row."""
    features = {
        output["name"]: output["data"]
        for output in predicted.outputs
        if output["name"] != PROBABILITY
    }
    rows = range(len(predicted.probabilities))
    body = {
        "id": predicted.request_id,
        "model": predicted.model,
        "version": predicted.version,
        "predictions": [{PROBABILITY: value} for value in predicted.probabilities],
        "features": [{name: features[name][row] for name in features} for row in rows],
    }
    return orjson.dumps(body)


def read_infer(body: Mapping[str, Any], limits: Limits) -> Question:
    """Read a request of the Open Inference Protocol. Raises BadRequest."""
    _known_fields(body, {"id", "parameters", "inputs", "outputs", *NAMED_BY_CLIENTS})
    own_id, parameters = body.get("id"), body.get("parameters") or {}
    wire.validate({"id": own_id}, {"id": wire.PREDICTION["user"]}, limits, strict=False)
    if not isinstance(parameters, Mapping):
        raise BadRequest("'parameters' must be an object.", param="parameters")
    if parameters.get("binary_data_output"):
        raise BadRequest(
            "'binary_data_output': tensors are sent as JSON here, without the binary extension.",
            param="parameters.binary_data_output",
            code="not_supported",
        )
    named = {name: parameters[name] for name in ("user", "episode_id") if name in parameters}
    wire.validate(named, wire.PREDICTION, limits, strict=False)
    return Question(
        tensors_of_inputs(body.get("inputs"), limits.instances),
        user=parameters.get("user"),
        episode_id=parameters.get("episode_id"),
        own_id=own_id,
        outputs=_wanted(body.get("outputs")),
        features=parameters.get("features") is True,
    )


def write_infer(question: Question, predicted: Predicted) -> bytes:
    """The protocol's answer, with the outputs that are asked for. Raises BadRequest."""
    wanted = question.outputs or (PROBABILITY,)
    if missing := set(wanted) - {output["name"] for output in predicted.outputs}:
        raise BadRequest(f"'outputs': there is no {min(missing)!r}.", param="outputs")
    all_of_them = question.features and question.outputs is None
    body = {
        "model_name": predicted.model,
        "model_version": predicted.version,
        "id": question.own_id or predicted.request_id,
        "outputs": [
            output for output in predicted.outputs if all_of_them or output["name"] in wanted
        ],
    }
    return orjson.dumps(body)


def _wanted(outputs: Any) -> tuple[str, ...] | None:
    if not outputs:
        return None
    if not isinstance(outputs, list):
        raise BadRequest("'outputs' must be a list of objects with a name.", param="outputs")
    for index, output in enumerate(outputs):
        where = f"outputs[{index}]"
        if not isinstance(output, Mapping) or not isinstance(output.get("name"), str):
            raise BadRequest(f"{where} must be an object with a name.", param=where)
    return tuple(output["name"] for output in outputs)


def _known_fields(body: Mapping[str, Any], known: set[str]) -> None:
    for name in body:
        if name not in known:
            raise BadRequest(
                f"Unknown field '{name[:64]}'; there are: {', '.join(sorted(known))}.",
                param=name[:64],
                code="unknown_field",
            )


PREDICT = Form("predict", read_predict, write_predict)
INFER = Form("infer", read_infer, write_infer)
