"""Random small templates of the supported subset, with values, and Jinja's own sandbox for them.

Where a template's words differ from Jinja's on purpose, the sandbox is told: values are written as
JSON, text is not indexed, and what is missing is an error anywhere but in an `if`.
"""

import json
import random
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import UndefinedError
from jinja2.filters import FILTERS
from jinja2.sandbox import SandboxedEnvironment

Names = tuple[str, ...]
SCALARS = (None, True, False, 0, 1, 2, 3, -1, "", "a", "Öl", " b ")
TEXTS = ("", "a <b>", " & ", "'é'\n", "\n\t ", "{# nothing #}", "{% raw %}{{ x }}{% endraw %}")
PLACES = (".id", "['text']", "[0]", "[1]")
FILTERED = ("|lower", "|upper", "|trim", "|length", "|join", "|join('; ')", "|tojson")
CONDITIONS = (
    "{}", "{} is defined", "{} is not defined", "{} == {}", "{} != {}", "{} < {}", "{} >= {}",
    "'a' in {}", "'a' not in {}", "{} <= {} < 3",
)  # fmt: skip
JOINED = ("not ({})", "({}) and ({})", "({}) or ({})")


class Writer:
    """Writes templates of a few parts, the same ones from the same seed."""

    def __init__(self, seed: int):
        self._draw = random.Random(seed)

    def template(self, depth: int = 2, names: Names = ("a", "b")) -> str:
        """A template that speaks of `names`, and of what is not there."""
        return "".join(self._part(depth, names) for _ in range(self._draw.randint(1, 3)))

    def values(self) -> dict[str, Any]:
        """Values of the names; now and then one is not there."""
        pick, some = self._draw.choice, range(self._draw.randint(0, 3))
        found = {
            "a": {"id": pick(SCALARS), "text": pick(SCALARS)},
            "b": pick(SCALARS),
            "things": [self._thing() for _ in some],
            "rows": [[self._thing() for _ in some] for _ in some],
        }
        return {name: value for name, value in found.items() if self._draw.random() < 0.95}

    def _thing(self) -> Any:
        pick = self._draw.choice
        return pick(SCALARS) if self._maybe() else {pick(("id", "text")): pick(SCALARS)}

    def _part(self, depth: int, names: Names) -> str:
        kind = self._draw.randint(0, 3 if depth else 1)
        if kind == 0:
            return self._draw.choice(TEXTS)
        if kind == 1:
            return f"{{{{ {self._value(names)} }}}}"
        return self._if(depth - 1, names) if kind == 2 else self._for(depth - 1, names)

    def _if(self, depth: int, names: Names) -> str:
        left, right = self._draw.choice([("{%", "%}"), ("{%-", "%}"), ("{%", "-%}")])
        text = f"{left} if {self._condition(names, 2)} {right}{self.template(depth, names)}"
        if self._maybe():
            text += f"{{% elif {self._condition(names, 1)} %}}{self.template(depth, names)}"
        if self._maybe():
            text += f"{{% else %}}{self.template(depth, names)}"
        return text + "{% endif %}"

    def _for(self, depth: int, names: Names) -> str:
        inner = (*names, "loop.index", "loop.first", "loop.last", "loop.length")
        if self._maybe():
            body = self.template(depth, (*inner, "thing"))
            text = f"{{% for thing in things %}}{body}"
        else:
            body = self.template(0, (*inner, "thing"))
            row = f"{{% for thing in row %}}{body}{{% endfor %}}"
            text = f"{{% for row in rows %}}{self.template(depth, inner)}{row}"
        if self._maybe():
            text += f"{{% else %}}{self.template(depth, names)}"
        return text + "{% endfor %}"

    def _value(self, names: Names) -> str:
        rare = ("gone", "things", "rows", "1", "2.5", "'a'", "true")
        name = self._draw.choice(names if self._draw.random() < 0.8 else rare)
        places = "".join(self._draw.choices(PLACES, k=max(0, self._draw.randint(-5, 2))))
        filtered = self._draw.choice(FILTERED) if self._draw.random() < 0.2 else ""
        return name + places + filtered

    def _condition(self, names: Names, depth: int) -> str:
        if depth == 0 or self._maybe():
            form = self._draw.choice(CONDITIONS)
            return form.format(*(self._value(names) for _ in range(form.count("{}"))))
        form = self._draw.choice(JOINED)
        count = form.count("{}")
        return form.format(*(self._condition(names, depth - 1) for _ in range(count)))

    def _maybe(self) -> bool:
        return self._draw.random() < 0.5


def _refuse(self: Undefined, *_: Any) -> Any:
    self._fail_with_undefined_error()


class Absent(Undefined):
    """Like Jinja's strict one, but false in an `if`, and with absent parts."""

    __iter__ = __str__ = __len__ = __contains__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, _key: Any) -> "Absent":  # type: ignore[override]
        return self

    def __bool__(self) -> bool:
        return False


class Sandbox(SandboxedEnvironment):
    """Jinja's sandbox in the words of prompts."""

    def __init__(self) -> None:
        super().__init__(undefined=Absent, finalize=_text, keep_trailing_newline=True)
        for name in ("lower", "upper", "trim"):
            self.filters[name] = lambda value, do=FILTERS[name]: do(_text(value))
        self.filters["join"] = self._join
        self.filters["tojson"] = lambda value: json.dumps(_present(value), ensure_ascii=False)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, str):
            return self.undefined(name=str(argument))
        return super().getitem(obj, argument)

    def _join(self, value: Any, by: str = "") -> str:
        if not isinstance(_present(value), list):
            raise TypeError("no list")
        return by.join(map(_text, value))


def _present(value: Any) -> Any:
    if isinstance(value, Undefined):
        raise UndefinedError("gone")
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(_present(value), ensure_ascii=False)
