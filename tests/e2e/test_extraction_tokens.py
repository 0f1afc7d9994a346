"""The extraction task on the real parts: its answers fit the tokens, its form is obeyed."""

import json
import re
import urllib.request
from itertools import product

import yaml

from evals.extraction import MAX_TOKENS, SHAPE, answer_text, held_out, request_body
from evals.extraction_words import HELD_OUT, TRAINING
from tests.e2e.conftest import RunningStack


def test_every_answer_fits_its_tokens(stack: RunningStack):
    from tokenizers import Tokenizer

    part = yaml.safe_load(stack.config_path.read_text())["stack"]
    folder = f"{part['models_dir']}/{part['engine']['model']}"
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")

    def tokens(name: str, job: str, city: str) -> int:
        text = answer_text({"name": name, "job": job, "city": city})
        return len(tokenizer.encode(text, add_special_tokens=False).ids) + 1  # and the end

    for half in (TRAINING, HELD_OUT):
        # A value's tokens do not depend on the other values, so the longest of each are the worst.
        first = (half.names[0], half.jobs[0], half.cities[0])
        longest = []
        for place, listed in enumerate((half.names, half.jobs, half.cities)):
            counts = {
                one: tokens(*first[:place], one, *first[place + 1 :])  # type: ignore[call-arg]
                for one in listed
            }
            most = max(counts.values())
            longest.append([one for one, count in counts.items() if count == most])
        assert max(tokens(*words) for words in product(*longest)) <= MAX_TOKENS


def test_the_engine_keeps_to_the_shape(stack: RunningStack):
    case = next(case for case in held_out() if case.tags["wording"] == "plain")
    request = urllib.request.Request(
        f"{stack.base_url}/chat/completions",
        json.dumps(request_body("smollm2-135m-instruct", case.messages)).encode(),
        {"authorization": f"Bearer {stack.api_key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        choice = json.loads(response.read())["choices"][0]
    # The plain model may not come to an end within its tokens, but it cannot leave the shape.
    start = choice["message"]["content"]
    assert start.startswith('{"name":"')
    if choice["finish_reason"] == "stop":
        assert re.fullmatch(SHAPE, start)
