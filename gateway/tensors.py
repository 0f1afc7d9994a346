"""Tensors of the Open Inference Protocol (v2) as JSON: one per column, each value of a row.

Source: https://kserve.github.io/website/latest/modelserving/data_plane/v2_protocol/

Invariant: the values of a `Tensor` are of its datatype. A number may be missing (null) in a float
column only; text, booleans and whole numbers are always there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.errors import BadRequest
from gateway.wire import TEXT_BYTES

BYTES, BOOL, FLOAT, INTEGER = "BYTES", "BOOL", "FP64", "INT64"
NAME_CHARACTERS = 128
KINDS = {
    "a whole number": INTEGER,
    "a number": FLOAT,
    "text": BYTES,
    "true or false": BOOL,
    "null": FLOAT,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One column: a value for each row, in order."""

    name: str
    datatype: str
    values: Sequence[Any]

    def as_input(self) -> dict[str, Any]:
        """As an entry of `inputs`."""
        return {
            "name": self.name,
            "shape": [len(self.values)],
            "datatype": self.datatype,
            "data": self.values,
        }


def tensors_of_inputs(inputs: Any, most: int) -> list[Tensor]:
    """The columns in a request's `inputs`, of `most` rows at most.

    Raises:
        BadRequest: names the tensor, and what is wrong with its name, shape, datatype or values.
    """
    if not isinstance(inputs, list) or not inputs:
        raise BadRequest("'inputs' must be a non-empty list of tensors.", param="inputs")
    tensors = [_tensor(given, f"inputs[{index}]") for index, given in enumerate(inputs)]
    names = [tensor.name for tensor in tensors]
    for index, tensor in enumerate(tensors):
        where = f"inputs[{index}]"
        if tensor.name in names[:index]:
            raise BadRequest(f"{where}: there are two tensors {tensor.name!r}.", param=where)
        if len(tensor.values) != len(tensors[0].values):
            raise BadRequest(
                f"{where}.shape: {tensor.name!r} has {len(tensor.values)} rows, "
                f"{names[0]!r} has {len(tensors[0].values)}.",
                param=f"{where}.shape",
            )
    _check_rows(len(tensors[0].values), most, "inputs")
    return tensors


def tensors_of_instances(instances: Any, most: int) -> list[Tensor]:
    """The columns of a list of rows that have the same columns each, at most `most` rows.

    A column is text, or booleans, or numbers; of numbers some may be null.

    Raises:
        BadRequest: names the row and the column that do not fit.
    """
    if not isinstance(instances, list) or not instances:
        raise BadRequest("'instances' must be a non-empty list of objects.", param="instances")
    _check_rows(len(instances), most, "instances")
    first = instances[0]
    for index, row in enumerate(instances):
        where = f"instances[{index}]"
        if not isinstance(row, dict) or not row:
            raise BadRequest(f"{where} must be an object of columns.", param=where)
        if odd := sorted(set(row) ^ set(first)):
            name, lacks = odd[0], where if odd[0] in first else "instances[0]"
            raise BadRequest(
                f"{lacks} has no {name[:NAME_CHARACTERS]!r}, and another row has.", param=lacks
            )
    return [_column(name, [row[name] for row in instances]) for name in first]


def _check_rows(rows: int, most: int, where: str) -> None:
    if not 0 < rows <= most:
        raise BadRequest(f"'{where}' must have 1 to {most} rows, not {rows}.", param=where)


def _column(name: str, values: list[Any]) -> Tensor:
    _check_name(name, "instances")
    kinds = [_kind(value, f"instances[{row}].{name}") for row, value in enumerate(values)]
    datatypes = {KINDS[kind] for kind in kinds}
    if len(datatypes) == 1:
        return Tensor(name, datatypes.pop(), values)
    if datatypes == {INTEGER, FLOAT}:
        return Tensor(name, FLOAT, values)
    row = next(row for row, kind in enumerate(kinds) if not _alike(kind, kinds[0]))
    where = f"instances[{row}].{name}"
    raise BadRequest(f"{where} is {kinds[row]}, but instances[0].{name} {kinds[0]}.", param=where)


def _alike(kind: str, other: str) -> bool:
    numbers = (INTEGER, FLOAT)
    return KINDS[kind] == KINDS[other] or (KINDS[kind] in numbers and KINDS[other] in numbers)


def _kind(value: Any, where: str) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return "a whole number"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str) and len(value) <= TEXT_BYTES:
        return "text"
    raise BadRequest(
        f"{where} must be a number, a boolean, null, or text of at most {TEXT_BYTES} characters.",
        param=where,
    )


def _tensor(given: Any, where: str) -> Tensor:
    if not isinstance(given, Mapping):
        raise BadRequest(f"{where} must be an object.", param=where)
    for field in ("name", "shape", "datatype", "data"):
        if field not in given:
            raise BadRequest(
                f"{where} has no '{field}'; tensors are taken as JSON, without the binary "
                "extension.",
                param=f"{where}.{field}",
                code="missing_field",
            )
    name, datatype, shape = given["name"], given["datatype"], given["shape"]
    _check_name(name, where)
    fits = _FITS.get(datatype) if isinstance(datatype, str) else None
    if fits is None:
        raise BadRequest(
            f"{where}.datatype: {name!r} must be one of {', '.join(_FITS)}.",
            param=f"{where}.datatype",
        )
    values = _flat(name, given["data"], shape, where)
    for row, value in enumerate(values):
        if not fits(value):
            raise BadRequest(
                f"{where}.data[{row}]: a value of {name!r} is not {datatype}.",
                param=f"{where}.data",
            )
    return Tensor(name, datatype, values)


def _flat(name: str, data: Any, shape: Any, where: str) -> list[Any]:
    """The values of a tensor of shape [n] or [n, 1], nested or not."""
    counts = shape if isinstance(shape, list) else []
    if not (
        1 <= len(counts) <= 2
        and all(isinstance(n, int) and not isinstance(n, bool) for n in counts)
        and counts[1:] in ([], [1])
    ):
        raise BadRequest(
            f"{where}.shape: {name!r} must be of shape [n] or [n, 1]: one value a row.",
            param=f"{where}.shape",
        )
    values = data if isinstance(data, list) else []
    if len(counts) == 2:
        values = [
            value[0] if isinstance(value, list) and len(value) == 1 else value for value in values
        ]
    if not isinstance(data, list) or len(values) != counts[0]:
        raise BadRequest(
            f"{where}.data: {name!r} must have {counts[0]} values, as its shape says.",
            param=f"{where}.data",
        )
    return values


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS or not name.isprintable():
        raise BadRequest(
            f"{where}: a column's name has 1 to {NAME_CHARACTERS} printable characters.",
            param=where,
        )


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return fits


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_BYTES


_FITS: Mapping[str, Callable[[Any], bool]] = {
    BYTES: _text,
    BOOL: lambda value: isinstance(value, bool),
    FLOAT: _number,
    "FP32": _number,
    **{f"INT{bits}": _whole(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (64, 32, 16, 8)},
    **{f"UINT{bits}": _whole(0, 2**bits - 1) for bits in (64, 32, 16, 8)},
}
