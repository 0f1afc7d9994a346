"""`llmops new`: what it writes is a spec that loads, is short, and is never written over."""

import pytest
from typer.testing import CliRunner

from deploy.commands.new import app
from pipelines.spec import SPECS, load_spec
from pipelines.tabular_spec import sections


def run(*arguments):
    return CliRunner().invoke(app, arguments)


def test_a_tabular_spec_loads(tmp_path):
    file = tmp_path / "flight-cancellation.yaml"
    done = run(
        "tabular", "flight-cancellation", "--label", "cancelled", "--service", "cancellation",
        "--out", str(file),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "next: llmops train tabular" in done.output
    spec = load_spec(file)
    assert sections(spec).dataset.label == spec.experiment.metric == "cancelled"
    assert len(file.read_text().splitlines()) <= 60


def test_the_second_model_is_what_the_command_wrote(tmp_path):
    """Model 2 is one file: only the two lines of the comment on top were written by hand."""
    file = tmp_path / "flight-cancellation.yaml"
    run(
        "tabular", "flight-cancellation", "--label", "cancelled", "--service", "cancellation",
        "--out", str(file),
    )  # fmt: skip
    packaged = (SPECS / "flight-cancellation.yaml").read_text().splitlines()
    assert packaged[2:] == file.read_text().splitlines()[2:]
    assert len(packaged) <= 60


def test_a_language_models_spec_loads(tmp_path):
    file = tmp_path / "chat.yaml"
    assert run("llm", "chat", "--out", str(file)).exit_code == 0
    assert load_spec(file).kind == "llm"


@pytest.mark.parametrize("name", ["flight-delay", "flight-cancellation"])
def test_packaged_tabular_specs_are_whole(name):
    spec = load_spec(SPECS / f"{name}.yaml")
    given = sections(spec)
    assert {condition.metric for condition in spec.gate} <= set(given.evaluation.metrics)


def test_a_file_is_not_written_over(tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text("mine")
    done = run("tabular", "m", "--out", str(file))
    assert done.exit_code == 2
    assert "already" in done.output
    assert file.read_text() == "mine"


def test_a_name_is_one_that_can_be_served():
    assert run("tabular", "Flight Delay").exit_code == 2
