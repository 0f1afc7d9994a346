"""A prompt's template: variables, `if` and `for` in Jinja's notation, interpreted with bounds.

Jinja parses, nothing of it is run: only the nodes named here have a meaning, values are JSON, and a
dot or an index looks into objects and lists and never at a Python attribute. Every step is counted
and every character too, so a template ends after a bounded time whatever it and its variables are.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes

STEPS = 50_000
CHARACTERS = 200_000
SOURCE_CHARACTERS = 100_000
DEPTH = 40

Values = Mapping[str, Any]


class BadTemplate(ValueError):
    """A template that cannot be used. `line` is the one in the template, from 1."""

    def __init__(self, message: str, line: int):
        self.line = line
        super().__init__(message)


class RenderFailed(ValueError):
    """A template that cannot be rendered with these variables; the message says why."""


class Missing:
    """What a name stands for that has no value: empty in an `if`, an error anywhere else."""

    def __init__(self, name: str):
        self.name = name


FILTERS: Mapping[str, Callable[..., Any]] = {
    "join": lambda value, by="": by.join(_text(one) for one in value),
    "length": len,
    "lower": lambda value: _text(value).lower(),
    "upper": lambda value: _text(value).upper(),
    "trim": lambda value: _text(value).strip(),
    "tojson": lambda value: json.dumps(value, ensure_ascii=False),
}
COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": lambda one, other: one == other,
    "ne": lambda one, other: one != other,
    "lt": lambda one, other: one < other,
    "lteq": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "gteq": lambda one, other: one >= other,
    "in": lambda one, other: one in other,
    "notin": lambda one, other: one not in other,
}
ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.For,
    nodes.And, nodes.Or, nodes.Not, nodes.Compare, nodes.Operand, nodes.Getattr, nodes.Getitem,
    nodes.Filter, nodes.Test,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. `names` are the variables that it speaks of."""

    source: str
    names: frozenset[str]
    tree: nodes.Template = field(repr=False, compare=False)

    @classmethod
    def parse(cls, source: str) -> "Template":
        """Read a template.

        Raises: BadTemplate where it is no template, or has more than variables, `if` and `for`.
        """
        if len(source) > SOURCE_CHARACTERS:
            raise BadTemplate(f"longer than {SOURCE_CHARACTERS} characters", 1)
        try:
            tree = Environment(keep_trailing_newline=True).parse(source)
        except TemplateSyntaxError as error:
            raise BadTemplate(error.message or "not a template", error.lineno) from error
        except RecursionError as error:
            raise BadTemplate("nests too deeply", 1) from error
        _check(tree, 0)
        return cls(source, frozenset(_free(tree, frozenset())), tree)

    def render(self, values: Values) -> str:
        """The text, with `values` by name.

        Raises: RenderFailed where a value is missing or unfit, or a bound is reached.
        """
        return _Rendering().text(self.tree, values)


class _Rendering:
    """One template being rendered: what it has used up so far."""

    def __init__(self) -> None:
        self._steps = 0
        self._characters = 0

    def text(self, tree: nodes.Template, values: Values) -> str:
        try:
            return "".join(self._block(tree.body, values))
        except (TypeError, AttributeError) as error:  # a filter or comparison of unfit values
            raise RenderFailed(f"a value is not of the kind that is wanted: {error}") from error

    def _block(self, body: Sequence[nodes.Node], values: Values) -> Iterator[str]:
        for node in body:
            self._step()
            if isinstance(node, nodes.Output):
                for part in node.nodes:
                    yield self._written(part, values)
            elif isinstance(node, nodes.If):
                yield from self._if(node, values)
            elif isinstance(node, nodes.For):
                yield from self._for(node, values)

    def _if(self, node: nodes.If, values: Values) -> Iterator[str]:
        for branch in (node, *node.elif_):
            if self._true(branch.test, values):
                yield from self._block(branch.body, values)
                return
        yield from self._block(node.else_, values)

    def _for(self, node: nodes.For, values: Values) -> Iterator[str]:
        items = self._value(node.iter, values)
        if isinstance(items, Missing):
            raise _missing(items)
        if not isinstance(items, list):
            raise RenderFailed(f"line {node.lineno}: `for` wants a list")
        name = getattr(node.target, "name", "")
        for number, item in enumerate(items, 1):
            loop = {"index": number, "first": number == 1, "last": number == len(items),
                    "length": len(items)}  # fmt: skip
            yield from self._block(node.body, {**values, name: item, "loop": loop})
        if not items:
            yield from self._block(node.else_, values)

    def _written(self, node: nodes.Node, values: Values) -> str:
        if isinstance(node, nodes.TemplateData):
            text = node.data
        else:
            value = self._value(node, values)
            if isinstance(value, Missing):
                raise _missing(value)
            text = _text(value)
        self._characters += len(text)
        if self._characters > CHARACTERS:
            raise RenderFailed(f"the rendered prompt is longer than {CHARACTERS} characters")
        return text

    def _true(self, node: nodes.Node, values: Values) -> bool:
        value = self._value(node, values)
        return not isinstance(value, Missing) and bool(value)

    def _value(self, node: nodes.Node, values: Values) -> Any:
        self._step()
        match node:
            case nodes.Const():
                return node.value
            case nodes.Name():
                return values.get(node.name, Missing(node.name))
            case nodes.Getattr():
                return self._looked_up(node.node, node.attr, values)
            case nodes.Getitem():
                return self._looked_up(node.node, self._value(node.arg, values), values)
            case nodes.Filter():
                return self._filtered(node, values)
        return self._truth(node, values)

    def _truth(self, node: nodes.Node, values: Values) -> bool:
        match node:
            case nodes.And():
                return self._true(node.left, values) and self._true(node.right, values)
            case nodes.Or():
                return self._true(node.left, values) or self._true(node.right, values)
            case nodes.Not():
                return not self._true(node.node, values)
            case nodes.Compare():
                return self._compared(node, values)
            case nodes.Test():
                there = not isinstance(self._value(node.node, values), Missing)
                return there if node.name == "defined" else not there
        raise RenderFailed(f"line {node.lineno}: {type(node).__name__} has no meaning here")

    def _looked_up(self, node: nodes.Node, key: Any, values: Values) -> Any:
        """A part of an object or list; what is not there is missing."""
        whole = self._value(node, values)
        if isinstance(whole, Missing):
            return Missing(f"{whole.name}.{key}")
        if isinstance(whole, Mapping) and isinstance(key, str) and key in whole:
            return whole[key]
        if isinstance(whole, list) and type(key) is int and -len(whole) <= key < len(whole):
            return whole[key]
        return Missing(str(key))

    def _compared(self, node: nodes.Compare, values: Values) -> bool:
        one = self._present(node.expr, values)
        for operand in node.ops:
            other = self._present(operand.expr, values)
            if not COMPARISONS[operand.op](one, other):
                return False
            one = other
        return True

    def _filtered(self, node: nodes.Filter, values: Values) -> Any:
        assert node.node is not None
        given = [self._present(one, values) for one in (node.node, *node.args)]
        if isinstance(given[0], str | list | dict):
            self._steps += len(given[0]) // 100  # a long value is more work than a step
        return FILTERS[node.name](*given)

    def _present(self, node: nodes.Node, values: Values) -> Any:
        value = self._value(node, values)
        if isinstance(value, Missing):
            raise _missing(value)
        return value

    def _step(self) -> None:
        self._steps += 1
        if self._steps > STEPS:
            raise RenderFailed(f"the template takes more than {STEPS} steps with these variables")


def _check(node: nodes.Node, depth: int) -> None:
    """Refuse what has no meaning here, with its line."""
    name = getattr(node, "name", "")
    unknown = (isinstance(node, nodes.Filter) and name not in FILTERS) or (
        isinstance(node, nodes.Test) and name not in ("defined", "undefined")
    )
    tuple_target = isinstance(node, nodes.For) and not isinstance(node.target, nodes.Name)
    extra = isinstance(node, nodes.For) and (node.test is not None or node.recursive)
    if not isinstance(node, ALLOWED) or unknown or tuple_target or extra:
        what = f"{type(node).__name__} {name}".strip().lower()
        raise BadTemplate(
            f"{what}: a template has variables, if, for and the filters {', '.join(FILTERS)}",
            node.lineno,
        )
    if isinstance(node, nodes.Filter) and (node.kwargs or len(node.args) > (name == "join")):
        raise BadTemplate(f"filter {name}: takes no such arguments", node.lineno)
    if depth > DEPTH:
        raise BadTemplate(f"nests deeper than {DEPTH} levels", node.lineno)
    for child in node.iter_child_nodes():
        _check(child, depth + 1)


def _free(node: nodes.Node, bound: frozenset[str]) -> Iterator[str]:
    """Names that are not bound by a `for` around them."""
    if isinstance(node, nodes.Name):
        if node.name not in bound:
            yield node.name
        return
    if isinstance(node, nodes.For):
        yield from _free(node.iter, bound)
        inner = bound | {getattr(node.target, "name", ""), "loop"}
        for child in node.body:
            yield from _free(child, inner)
        for child in node.else_:
            yield from _free(child, bound)
        return
    for child in node.iter_child_nodes():
        yield from _free(child, bound)


def _missing(value: Missing) -> RenderFailed:
    return RenderFailed(f"{value.name}: has no value")


def _text(value: Any) -> str:
    """A value as the template writes it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
