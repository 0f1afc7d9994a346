"""A prompt's template: variables, `if` and `for` in Jinja's notation, interpreted with bounds.

Jinja parses, nothing of it is run: only the nodes named here have a meaning, values are JSON, and a
dot or an index looks into objects and lists and never at a Python attribute. Every step is counted
and every character too, and work on a long value counts as many steps, so a template ends after a
bounded time whatever it and its variables are.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes

STEPS = 50_000
CHARACTERS = 200_000
SOURCE_CHARACTERS = 100_000
DEPTH = 40
AT_ONCE = 100  # characters that are worked on in the time of a step
SEARCHED_AT_ONCE = 2_000
LARGEST_INTEGER = 2**63 - 1
NAMED_CHARACTERS = 64
JSON = json.JSONEncoder(ensure_ascii=False)

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


class Budget:
    """What a rendering may still use up; the templates of one prompt share one.

    Attributes:
        steps, characters: used so far.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.characters = 0

    def step(self, count: int = 1) -> None:
        """Take `count` steps. Raises RenderFailed where there are no more."""
        self.steps += count
        if self.steps > STEPS:
            raise RenderFailed(f"the template takes more than {STEPS} steps with these variables")

    def work(self, value: Any) -> None:
        """Take a step for each part of `value`, however deep, and more for long texts."""
        parts = [value]
        while parts:
            part = parts.pop()
            self.step()
            if isinstance(part, str | list | dict):
                self.step(len(part) // AT_ONCE)
            if isinstance(part, list | dict):
                parts.extend(part)
            if isinstance(part, dict):
                parts.extend(part.values())

    def write(self, text: str) -> str:
        """`text`, its characters taken."""
        self.characters += len(text)
        if self.characters > CHARACTERS:
            raise RenderFailed(f"the rendered prompt is longer than {CHARACTERS} characters")
        return text


def _join(value: Any, by: Any = "") -> str:
    if not isinstance(value, list):
        raise RenderFailed("`join` wants a list")
    parts, between = [_text(one) for one in value], _text(by)
    if sum(map(len, parts)) + len(between) * len(parts) > CHARACTERS:
        raise RenderFailed(f"`join` makes more than {CHARACTERS} characters")
    return between.join(parts)


FILTERS: Mapping[str, Callable[..., Any]] = {
    "join": _join,
    "length": len,
    "lower": lambda value: _text(value).lower(),
    "upper": lambda value: _text(value).upper(),
    "trim": lambda value: _text(value).strip(),
    "tojson": JSON.encode,
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
    """A parsed template. `names` are the variables that it speaks of, with a line for each."""

    source: str
    names: Mapping[str, int]
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
        except ValueError as error:  # a number of thousands of digits
            raise BadTemplate(f"not a template: {error}", 1) from error
        _check(tree, 0)
        names: dict[str, int] = {}
        for name in _free(tree, frozenset()):
            names.setdefault(name.name, name.lineno)
        return cls(source, names, tree)

    def render(self, values: Values, budget: Budget | None = None) -> str:
        """The text, with `values` by name.

        Raises: RenderFailed where a value is missing or unfit, or the budget is used up.
        """
        return _Rendering(budget or Budget()).text(self.tree, values)


class _Rendering:
    """One template being rendered."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def text(self, tree: nodes.Template, values: Values) -> str:
        try:
            return "".join(self._block(tree.body, values))
        except (TypeError, AttributeError) as error:  # a filter or comparison of unfit values
            raise RenderFailed(f"a value is not of the kind that is wanted: {error}") from error
        except RecursionError as error:
            raise RenderFailed("a value nests too deeply") from error

    def _block(self, body: Sequence[nodes.Node], values: Values) -> Iterator[str]:
        for node in body:
            self._budget.step()
            if isinstance(node, nodes.Output):
                for part in node.nodes:
                    yield self._budget.write(self._written(part, values))
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
        items = self._present(node.iter, values)
        if not isinstance(items, list):
            raise RenderFailed(f"line {node.lineno}: `for` wants a list")
        inner, name = dict(values), getattr(node.target, "name", "")
        for number, item in enumerate(items, 1):
            self._budget.step()
            inner[name] = item
            inner["loop"] = {"index": number, "first": number == 1, "last": number == len(items),
                             "length": len(items)}  # fmt: skip
            yield from self._block(node.body, inner)
        if not items:
            yield from self._block(node.else_, values)

    def _written(self, node: nodes.Node, values: Values) -> str:
        if isinstance(node, nodes.TemplateData):
            return node.data
        value = self._present(node, values)
        if isinstance(value, list | dict):
            self._budget.work(value)
        return _text(value)

    def _true(self, node: nodes.Node, values: Values) -> bool:
        value = self._value(node, values)
        return not isinstance(value, Missing) and bool(value)

    def _value(self, node: nodes.Node, values: Values) -> Any:
        self._budget.step()
        match node:
            case nodes.Const():
                return node.value
            case nodes.Name():
                return values[node.name] if node.name in values else Missing(node.name)
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
            return Missing(f"{whole.name}.{_name(key)}")
        if isinstance(whole, Mapping) and isinstance(key, str) and key in whole:
            return whole[key]
        if isinstance(whole, list) and type(key) is int and -len(whole) <= key < len(whole):
            return whole[key]
        return Missing(_name(key))

    def _compared(self, node: nodes.Compare, values: Values) -> bool:
        one = self._present(node.expr, values)
        self._budget.work(one)
        for operand in node.ops:
            other = self._present(operand.expr, values)
            self._budget.work(other)
            if isinstance(one, str) and isinstance(other, str):  # a search takes up to the product
                self._budget.step(len(one) * len(other) // SEARCHED_AT_ONCE)
            if not COMPARISONS[operand.op](one, other):
                return False
            one = other
        return True

    def _filtered(self, node: nodes.Filter, values: Values) -> Any:
        assert node.node is not None
        given = [self._present(one, values) for one in (node.node, *node.args)]
        if node.name != "length":
            self._budget.work(given)
        made = FILTERS[node.name](*given)
        if isinstance(made, str) and len(made) > CHARACTERS:
            raise RenderFailed(f"`{node.name}` makes more than {CHARACTERS} characters")
        return made

    def _present(self, node: nodes.Node, values: Values) -> Any:
        value = self._value(node, values)
        if isinstance(value, Missing):
            raise RenderFailed(f"line {node.lineno}: {value.name}: has no value")
        return value


def _check(node: nodes.Node, depth: int) -> None:
    """Refuse what has no meaning here, with its line."""
    if depth > DEPTH:
        raise BadTemplate(f"nests deeper than {DEPTH} levels", node.lineno)
    if not isinstance(node, ALLOWED) or not _is_meant(node):
        what = f"{type(node).__name__} {getattr(node, 'name', '')}".strip().lower()
        raise BadTemplate(
            f"{what}: a template has variables, if, for and the filters {', '.join(FILTERS)}",
            _first_line(node),
        )
    if isinstance(node, nodes.Filter | nodes.Test):
        many = len(node.args) > (node.name == "join")
        if many or node.kwargs or node.dyn_args or node.dyn_kwargs:
            raise BadTemplate(f"{node.name}: takes no such arguments", node.lineno)
    if isinstance(node, nodes.Const) and not _is_json(node.value):
        raise BadTemplate("a number is too large", node.lineno)
    for child in node.iter_child_nodes():
        _check(child, depth + 1)


def _is_meant(node: nodes.Node) -> bool:
    """Whether this form of the node is among those that have a meaning."""
    if isinstance(node, nodes.Filter):
        return node.name in FILTERS
    if isinstance(node, nodes.Test):
        return node.name in ("defined", "undefined")
    if isinstance(node, nodes.For):
        named = isinstance(node.target, nodes.Name) and node.target.name != "loop"
        return named and node.test is None and not node.recursive
    return True


def _first_line(node: nodes.Node) -> int:
    """The node's line; Jinja gives none to some that stand around others."""
    return next((one.lineno for one in (node, *node.find_all(nodes.Node)) if one.lineno), 1)


def _is_json(value: Any) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    return not isinstance(value, int) or abs(value) <= LARGEST_INTEGER


def _free(node: nodes.Node, bound: frozenset[str]) -> Iterator[nodes.Name]:
    """Names that are not bound by a `for` around them."""
    if isinstance(node, nodes.Name):
        if node.name not in bound:
            yield node
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


def _name(key: Any) -> str:
    """What was asked for, as messages call it."""
    return str(key)[:NAMED_CHARACTERS] if isinstance(key, str | int) else "…"


def _text(value: Any) -> str:
    """A value as the template writes it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else JSON.encode(value)
