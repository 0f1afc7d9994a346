"""A training set of the whole pipeline has no golden case in it, whichever evaluation's it is."""

from pathlib import Path
from typing import Any

import orjson
import yaml

from evals.contents import GOLDEN
from evals.extraction import held_out
from gateway.database import now
from gateway.prompt_versions import PromptVersionRow, put_version
from gateway.settings import load_settings
from pipelines import llm
from pipelines.installation import open_installation
from pipelines.spec import load_spec
from prompts.library import load_library
from prompts.prompt import Prompt
from tests.gateway_process import configuration
from tests.rlhf.feedback_log import FeedbackLog, question

OWN = 30  # questions that are in no golden file


def tickets() -> list[dict[str, str]]:
    """Variables of the golden tickets."""
    path = GOLDEN / "ticket-classifier.jsonl"
    return [orjson.loads(line)["variables"] for line in path.read_bytes().splitlines()]


def former() -> Prompt:
    """A version of the ticket prompt that the library has no longer."""
    given = load_library()["ticket-classifier"]
    content = given.content | {"messages": [{"role": "user", "content": "Sort this: {{ ticket }}"}]}
    return Prompt.model_validate({"name": given.name, **content})


def test_no_golden_case_is_trained_on(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path)
    for number in range(OWN):
        log.show(log.ask(f"own question {number}", user=f"u{number % 3}"), f"answer {number}")
    one, two, three, four = tickets()[:4]
    golden: list[dict[str, Any]] = [
        {"request": {"messages": [*held_out()[0].messages]}},
        {"request": {"messages": question(held_out()[1].messages[-1]["content"], "Reworded.")}},
        {"request": {"messages": former().render(one)}},
        {"request": {"messages": question(two["ticket"])}},
        {"text": "put into words that nobody kept", "contexts": {"variables": three}},
        {"request": {"messages": former().render({"ticket": four["ticket"].upper()})}},
    ]
    for asked in golden:
        log.show(log.ask(**asked), "an answer")
    log.write()
    with log.database.transaction() as session:
        given = former()
        row = PromptVersionRow(
            name=given.name, version="1", content_hash=given.content_hash, content=given.content,
            path="ticket-classifier.yaml", created_at=now(),
        )  # fmt: skip
        put_version(session, row)
    log.database.close()
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(configuration("http://127.0.0.1:9/v1")))
    spec = load_spec(Path("extractor"))
    dataset = {**spec.dataset, "tenant": "acme", "minimum": 2}
    spec = spec.model_copy(update={"dataset": dataset})
    raw, quiet = tmp_path / "raw", lambda *_: None
    raw.mkdir()
    with open_installation(load_settings({"LLMOPS_HOME": str(tmp_path)})) as installation:
        llm.preprocess(installation, spec, raw, quiet)
        manifest = llm.features(installation, spec, raw, tmp_path / "dataset", quiet)
    assert manifest.about["dropped"] == {"held_out": len(golden)}
    files = [tmp_path / "dataset" / f"{part}.jsonl" for part in ("train", "validation")]
    lines = [orjson.loads(line) for path in files for line in path.read_bytes().splitlines()]
    assert sorted(line["messages"][-1]["content"] for line in lines) == sorted(
        f"own question {number}" for number in range(OWN)
    )
    assert manifest.about["selection"]["excluded"] > 500
