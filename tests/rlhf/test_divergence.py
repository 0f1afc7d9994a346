"""A training that ran away, or whose result could not be served: said so, and nothing is left."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.adapter import AdapterUnfit, inspect
from rlhf.finetune import Diverged
from tests.rlhf.trainings import CONFIG, Watched, left


def test_a_rate_without_measure_diverges(training, trained):
    shutil.copytree(trained.adapter, training.out)
    log = Watched()
    wild = replace(training, config=replace(CONFIG, learning_rate=1e30, checkpoint_steps=1))
    with pytest.raises(
        Diverged, match=r"^the training diverged in step 2: .*nan.*learning_rate"
    ) as caught:
        wild.run(log)
    assert log.steps == [0, 1]
    assert (caught.value.step, caught.value.last_good_loss) == (2, log.metrics[1]["loss"])
    assert left(training) == ["adapter"]
    assert inspect(training.out) == inspect(trained.adapter)


@pytest.mark.parametrize("rate", [1e30, 1e38])
@pytest.mark.parametrize("validated", [True, False])
def test_the_last_step_can_diverge_too(training, rate, validated):
    config = replace(CONFIG, learning_rate=rate, batch_size=40)
    one_step = replace(training, config=config)
    if not validated:
        one_step = replace(one_step, validation=None)
    with pytest.raises(Diverged) as caught:
        one_step.run()
    assert caught.value.step == 1
    assert caught.value.last_good_loss == pytest.approx(4.6, abs=0.1)
    assert left(training) == []


def test_a_base_that_is_broken_diverges_at_once(training, material, tmp_path_factory):
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(material.base, tmp_path_factory.mktemp("broken") / "tiny"))
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = math.nan
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(Diverged, match=r"step 1: loss nan.*no loss before it") as caught:
        replace(training, base=base).run()
    assert (caught.value.step, caught.value.last_good_loss) == (1, None)
    assert left(training) == []


def test_an_adapter_that_could_not_be_served_leaves_nothing(training):
    config = replace(CONFIG, target_modules=["embed_tokens"])
    with pytest.raises(AdapterUnfit, match=r"embed_tokens.* is no LoRA matrix that vLLM serves"):
        replace(training, config=config).run()
    assert left(training) == []


def test_a_folder_without_a_base_model(training, tmp_path):
    with pytest.raises(AdapterUnfit, match="no model to train on"):
        replace(training, base=tmp_path).run()
    assert left(training) == []
