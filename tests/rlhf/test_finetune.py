import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.adapter import DESCRIPTION, WEIGHTS, inspect
from rlhf.batches import Collator, answer_loss
from rlhf.finetune import BadRow, EmptyTraining
from rlhf.lora import precision
from rlhf.rows import read_rows
from rlhf.undisturbed import undisturbed
from tests.rlhf.tiny_model import write_rows
from tests.rlhf.trainings import CONFIG, STEPS, Stopped, Training, Watched, digest, left, stopped


def test_the_loss_falls(trained):
    assert trained.first_loss == pytest.approx(math.log(99), abs=0.05)  # it knows nothing
    assert trained.last_loss < 4
    assert trained.validation_loss < 4
    assert (trained.steps, trained.resumed_from, trained.dropped) == (30, None, ())
    assert [one.name for one in trained.adapter.parent.iterdir()] == ["adapter"]


def test_the_adapter_is_the_model_that_was_trained(material, in_one_go):
    with undisturbed(1):
        from peft import PeftModel

        plain = AutoModelForCausalLM.from_pretrained(material.base)
        tokenizer = AutoTokenizer.from_pretrained(material.base)
        model = PeftModel.from_pretrained(plain, in_one_go.adapter).eval()
        rows = read_rows(material.validation, tokenizer, CONFIG.max_length).kept
        with torch.no_grad():
            loss = answer_loss(model, Collator(2)(rows), precision()).item()
    assert loss == pytest.approx(in_one_go.validation_loss, rel=0.01)


def test_the_description_says_how_it_came_to_be(material, in_one_go):
    described = orjson.loads((in_one_go.adapter / DESCRIPTION).read_bytes())
    assert described["base_model"] == "tiny"
    assert described["config"]["learning_rate"] == CONFIG.learning_rate
    assert set(described["libraries"]) == {"torch", "transformers", "peft", "accelerate"}
    told = described["training"]
    assert (told["rows"], told["steps"], told["last_loss"]) == (40, STEPS, in_one_go.last_loss)
    text = "".join(path.read_text() for path in in_one_go.adapter.glob("*.json"))
    assert str(material.base.parent) not in text


def test_every_step_is_logged(training):
    log = Watched()
    result = training.run(log)
    assert log.steps == [*range(STEPS + 1), STEPS]
    first, *steps, last = log.metrics
    assert list(first) == list(last) == ["validation_loss"]
    assert last["validation_loss"] == result.validation_loss
    assert [steps[0]["loss"], steps[-1]["loss"]] == [result.first_loss, result.last_loss]
    for number, metrics in enumerate(steps):
        rate = CONFIG.learning_rate * CONFIG.rate(number, STEPS)
        assert metrics["learning_rate"] == pytest.approx(rate)
        assert 0 < metrics["step_seconds"] < 60
        assert metrics["steps"] == STEPS


def test_the_same_training_gives_the_same_adapter(training, in_one_go):
    assert digest(training.run()) == digest(in_one_go)


def test_another_seed_gives_another_adapter(training, in_one_go):
    other = replace(training, config=replace(CONFIG, seed=1)).run()
    assert digest(other) != digest(in_one_go)
    assert other.first_loss != in_one_go.first_loss  # other rows in the first step


def test_without_validation_rows(training, in_one_go):
    log = Watched()
    result = replace(training, validation=None).run(log)
    assert result.validation_loss is None
    assert log.steps == [*range(1, STEPS + 1)]
    assert digest(result) == digest(in_one_go)


@pytest.mark.parametrize(
    ("rows", "config", "why"),
    [(0, CONFIG, "it has no rows"), (7, replace(CONFIG, max_length=20), "all 7 rows are too long")],
)
def test_nothing_to_train_on(training, tmp_path, rows, config, why):
    train = write_rows(tmp_path / "train.jsonl", rows)
    with pytest.raises(EmptyTraining, match=f"train.jsonl: nothing to train on: {why}$"):
        replace(training, train=train, config=config).run()
    assert left(training) == ["train.jsonl"]


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_bad_row_ends_it_and_leaves_nothing(training, tmp_path, part):
    path = write_rows(tmp_path / "rows.jsonl", 3)
    path.write_text(path.read_text() + '{"messages": []}\n')
    with pytest.raises(BadRow, match=r"^rows\.jsonl:4: messages"):
        replace(training, **{part: path}).run()
    assert left(training) == ["rows.jsonl"]


def test_long_rows_are_left_out_and_named(training, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", 9)
    lines = path.read_text().splitlines()
    lines.insert(4, lines[0].replace("City", "A city in some country" * 10))
    path.write_text("\n".join(lines))
    result = replace(training, train=path, validation=path).run()
    assert result.steps == 3
    assert [one.partition(" tokens")[0] for one in result.dropped] == ["rows.jsonl:5: 297"] * 2


@pytest.mark.parametrize("step", [0, 1, 5, STEPS])
def test_what_a_log_raises_ends_it_and_the_next_call_goes_on(training, in_one_go, step):
    before = stopped(training, step)
    assert before.steps == [*range(step + 1)]
    assert left(training) == ["adapter.checkpoints"]
    log = Watched()
    result = training.run(log)
    done = max(0, step - 1) // 2 * 2
    assert result.resumed_from == (done or None)
    assert log.steps == [*range(done + 1 if done else 0, STEPS + 1), STEPS]
    assert digest(result) == digest(in_one_go)
    for name in ("steps", "first_loss", "last_loss", "validation_loss"):
        assert getattr(result, name) == getattr(in_one_go, name)
    assert left(training) == ["adapter"]


def test_a_training_that_only_had_to_be_published(training, in_one_go):
    log = Watched()

    def stop_after_the_last_checkpoint(step: int, metrics: Mapping[str, float]) -> None:
        if step == STEPS and "validation_loss" in metrics:
            raise Stopped

    with pytest.raises(Stopped):
        training.run(stop_after_the_last_checkpoint)
    result = training.run(log)
    assert log.steps == [STEPS]
    assert result.resumed_from == STEPS
    assert (digest(result), result.last_loss) == (digest(in_one_go), in_one_go.last_loss)


def cut(checkpoint: Path) -> None:
    path = checkpoint / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def change(checkpoint: Path) -> None:
    path = checkpoint / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [cut, change, lambda folder: (folder / "sealed.json").unlink()],
    ids=["half-written", "changed", "not sealed"],
)
def test_a_damaged_checkpoint_is_passed_over(training, in_one_go, damage):
    stopped(training, 8)
    checkpoints = sorted(training.out.with_name("adapter.checkpoints").glob("checkpoint-*"))
    assert [one.name for one in checkpoints] == ["checkpoint-4", "checkpoint-6"]
    damage(checkpoints[1])
    log = stopped(training, 6)
    assert log.steps == [5, 6]
    damage(checkpoints[0])
    result = training.run()
    assert result.resumed_from is None
    assert digest(result) == digest(in_one_go)


def other_rows(training: Training, folder: Path) -> Training:
    return replace(training, train=write_rows(folder / "rows.jsonl", 39))


def other_validation(training: Training, folder: Path) -> Training:
    return replace(training, validation=write_rows(folder / "rows.jsonl", 5))


def other_base(training: Training, folder: Path) -> Training:
    base = Path(shutil.copytree(training.base, folder / "other"))
    config = base / "config.json"
    config.write_text(config.read_text().replace("1e-06", "1e-05"))
    return replace(training, base=base)


def other_config(training: Training, folder: Path) -> Training:
    return replace(training, config=replace(CONFIG, learning_rate=4e-3))


def no_validation(training: Training, folder: Path) -> Training:
    return replace(training, validation=None)


@pytest.mark.parametrize(
    "other", [other_rows, other_validation, other_base, other_config, no_validation]
)
def test_another_training_starts_anew(training, tmp_path_factory, other):
    another = other(training, tmp_path_factory.mktemp("other"))
    stopped(training, 5)
    assert stopped(another, 1).steps[0] in (0, 1)
    assert left(training) == ["adapter.checkpoints"]
    checkpoints = training.out.with_name("adapter.checkpoints")
    assert [one.name for one in checkpoints.iterdir()] == ["fingerprint"]


def test_what_is_finished_is_not_done_again(training, in_one_go):
    shutil.copytree(in_one_go.adapter, training.out)
    leftovers = [
        training.out.with_name(name)
        for name in ("adapter.checkpoints", ".adapter.new", ".adapter.old")
    ]
    for one in leftovers:
        shutil.copytree(in_one_go.adapter, one)
    log = Watched()
    assert training.run(log) == replace(in_one_go, adapter=training.out)
    assert not log.steps
    assert left(training) == ["adapter"]


def test_what_was_damaged_since_is_done_again(training, in_one_go):
    shutil.copytree(in_one_go.adapter, training.out)
    cut(training.out)
    log = Watched()
    assert digest(training.run(log)) == digest(in_one_go)
    assert log.steps[0] == 0
    assert left(training) == ["adapter"]


def test_an_adapter_of_another_training_is_replaced_once_the_new_one_is_whole(
    training, trained, in_one_go
):
    shutil.copytree(trained.adapter, training.out)
    stopped(training, STEPS)
    assert inspect(training.out) == inspect(trained.adapter)
    assert digest(training.run()) == digest(in_one_go)
    assert left(training) == ["adapter"]


def test_a_kill_in_the_middle_of_a_replacement_loses_no_adapter(training, trained):
    shutil.copytree(trained.adapter, training.out.with_name(".adapter.old"))
    stopped(training, 0)
    assert inspect(training.out) == inspect(trained.adapter)
    assert left(training) == ["adapter", "adapter.checkpoints"]


def a_file(out: Path) -> None:
    out.write_text("precious")


def a_folder(out: Path) -> None:
    out.mkdir()
    (out / "notes.txt").write_text("precious")


def another_description(out: Path) -> None:
    out.mkdir()
    (out / DESCRIPTION).write_text('["precious"]')


@pytest.mark.parametrize("make", [a_file, a_folder, another_description])
def test_what_is_not_ours_is_not_replaced(training, make):
    make(training.out)
    with pytest.raises(FileExistsError, match="adapter is there and not an adapter of ours"):
        training.run()
    assert left(training) == ["adapter"]
    paths = [training.out, *training.out.rglob("*")]
    assert "precious" in "".join(path.read_text() for path in paths if path.is_file())


def test_an_empty_folder_is_used(training, in_one_go):
    training.out.mkdir()
    assert digest(training.run()) == digest(in_one_go)
