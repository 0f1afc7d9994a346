"""A candidate whose variables are others: those that a caller of production trips over."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.prompt_title import misfits
from prompts.prompt import BadVariables, Prompt
from tests.pipelines.prompt_trial import prompt

VARIABLES = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.tuples(st.sampled_from(["string", "number", "integer"]), st.booleans()),
)
VALUES = {"string": "x", "number": 1.5, "integer": 3}


def _with(declared: dict[str, tuple[str, bool]]) -> Prompt:
    variables = [
        {"name": name, "type": kind, "required": required}
        for name, (kind, required) in declared.items()
    ]
    return prompt("any", "text", variables=variables)


@settings(max_examples=200, deadline=None)
@given(now_there=VARIABLES, then=VARIABLES, left_out=st.sets(st.sampled_from(["a", "b", "c"])))
def test_whoever_can_call_production_can_call_what_does_not_misfit(now_there, then, left_out):
    production, candidate = _with(now_there), _with(then)
    asked = {
        name: VALUES[kind]
        for name, (kind, required) in now_there.items()
        if required or name not in left_out
    }
    production.render(asked)
    if not list(misfits(production, candidate)):
        candidate.render(asked)
    else:
        everything = {name: VALUES[kind] for name, (kind, _) in now_there.items()}
        least = {name: asked[name] for name, (_, required) in now_there.items() if required}
        refusals = 0
        for each in (everything, least):
            try:
                candidate.render(each)
            except BadVariables:
                refusals += 1
        assert refusals
