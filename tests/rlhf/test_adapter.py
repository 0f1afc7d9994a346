import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rlhf.adapter import (
    CONFIG,
    DESCRIPTION,
    WEIGHTS,
    AdapterUnfit,
    base_digest,
    inspect,
    require_fit,
    ruined,
    served_name,
)

RANK = 8
Matrices = dict[str, numpy.ndarray]
LAYER = "base_model.model.model.layers.1.mlp.up_proj"


@pytest.fixture(scope="session")
def good(trained) -> Path:
    return Path(trained.adapter)


@pytest.fixture(scope="session")
def base(material) -> str:
    return base_digest(material.base)


@pytest.fixture
def adapter(good, tmp_path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(good, tmp_path / "adapter"))


def edit(folder: Path, file: str, **fields: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite(folder: Path, change: Callable[[Matrices], Any]) -> None:
    matrices = load_file(folder / WEIGHTS)
    change(matrices)
    save_file(matrices, folder / WEIGHTS)


def refusal(folder: Path, base: str, rank: int = RANK) -> str:
    """Why the adapter is refused, without the folder that the message begins with."""
    with pytest.raises(AdapterUnfit) as caught:
        require_fit(folder, base, rank)
    begin, _, why = str(caught.value).partition(": ")
    assert begin == str(folder)
    return why


def test_a_trained_adapter_fits(good, base):
    info = require_fit(good, base, RANK)
    assert info == inspect(good)
    assert (info.base_digest, info.rank, info.base_model, info.note) == (base, 8, "tiny", "")
    assert info.target_modules == (
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    )  # fmt: skip
    assert served_name("extractor", info) == f"extractor-{info.digest[:12]}"


def test_another_base(good):
    why = refusal(good, "0" * 64)
    assert why.startswith("was trained on another base: tiny ")
    assert "not 000000000000; train it again on this one" in why


def test_too_high_a_rank(good, adapter, base):
    assert refusal(good, base, 7).startswith("rank 8 is above the engine's 7; ")
    edit(adapter, CONFIG, rank_pattern={"up_proj": 64})
    assert refusal(adapter, base).startswith("rank 64 is above the engine's 8; ")


def test_matrices_of_a_higher_rank_than_the_configuration_says(adapter, base):
    def grow(matrices: Matrices) -> None:
        matrices[f"{LAYER}.lora_A.weight"] = numpy.zeros((16, 64), "f4")
        matrices[f"{LAYER}.lora_B.weight"] = numpy.zeros((128, 16), "f4")

    rewrite(adapter, grow)
    assert inspect(adapter).rank == 16
    assert refusal(adapter, base).startswith("rank 16 is above the engine's 8; ")


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_missing_half(adapter, base, side):
    rewrite(adapter, lambda matrices: matrices.pop(f"{LAYER}.lora_{side}.weight"))
    other = "B" if side == "A" else "A"
    assert refusal(adapter, base) == (
        f"{WEIGHTS}: model.layers.1.mlp.up_proj has only lora_{other}"
    )


def test_halves_of_different_ranks(adapter, base):
    rewrite(
        adapter,
        lambda matrices: matrices.update({f"{LAYER}.lora_A.weight": numpy.zeros((4, 64), "f4")}),
    )
    assert refusal(adapter, base) == (
        f"{WEIGHTS}: model.layers.1.mlp.up_proj: ranks differ: [4, 64] and [128, 8]"
    )


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.lora_magnitude_vector",
        f"{LAYER}.lora_B.bias",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.weight",
    ],
)
def test_a_tensor_that_is_no_lora_matrix(adapter, base, name):
    rewrite(adapter, lambda matrices: matrices.update({name: numpy.zeros((8, 64), "f4")}))
    assert refusal(adapter, base) == f"{WEIGHTS}: {name} is no LoRA matrix that vLLM serves"


@pytest.mark.parametrize("shape", [(), (8,), (8, 8, 8)])
def test_a_matrix_that_is_none(adapter, base, shape):
    name = f"{LAYER}.lora_A.weight"
    rewrite(adapter, lambda matrices: matrices.update({name: numpy.zeros(shape, "f4")}))
    assert refusal(adapter, base) == f"{WEIGHTS}: {name} is no LoRA matrix that vLLM serves"


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.sampled_from(["A", "B"]),
    st.integers(0, 511),
)
def test_one_number_that_is_none(good, base, tmp_path_factory, dtype, number, side, place):
    import torch
    from safetensors.torch import load_file, save_file

    adapter = tmp_path_factory.mktemp("damaged") / "adapter"
    shutil.copytree(good, adapter)
    precision = getattr(torch, dtype)
    matrices = {name: one.to(precision) for name, one in load_file(good / WEIGHTS).items()}
    save_file(matrices, adapter / WEIGHTS)
    require_fit(adapter, base, RANK)
    name = f"{LAYER}.lora_{side}.weight"
    matrices[name].view(-1)[place] = number
    save_file(matrices, adapter / WEIGHTS)
    assert refusal(adapter, base) == (
        f"{WEIGHTS}: {name} holds infinite values or NaN; do not serve it, train it again"
    )


def test_numbers_of_another_kind(adapter, base):
    name = f"{LAYER}.lora_A.weight"
    rewrite(adapter, lambda matrices: matrices.update({name: numpy.zeros((8, 64), "i4")}))
    assert refusal(adapter, base) == f"{WEIGHTS}: {name} is I32, not F32 or F16 or BF16"


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 0.999), st.booleans())
def test_weights_that_are_cut(good, base, tmp_path_factory, share, head):
    adapter = tmp_path_factory.mktemp("damaged") / "adapter"
    shutil.copytree(good, adapter)
    content = (good / WEIGHTS).read_bytes()
    length = int(share * (2000 if head else len(content)))
    (adapter / WEIGHTS).write_bytes(content[:length])
    assert refusal(adapter, base).startswith(f"{WEIGHTS} is broken: ")


def test_weights_without_a_matrix(adapter, base):
    rewrite(adapter, Matrices.clear)
    assert refusal(adapter, base) == f"{WEIGHTS} holds no matrices"


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS, DESCRIPTION])
def test_a_missing_file_is_named(adapter, base, file):
    (adapter / file).unlink()
    assert refusal(adapter, base) == f"no adapter: {file} is missing (No such file or directory)"
    with pytest.raises(AdapterUnfit, match=file):
        inspect(adapter)


@pytest.mark.parametrize("file", [CONFIG, DESCRIPTION])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"r"', "\0"])
def test_a_broken_file_is_named(adapter, base, file, content):
    (adapter / file).write_text(content)
    assert refusal(adapter, base).startswith(f"{file} is broken: ")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias all"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.w1"]}, "target_parameters"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
        ({"monteclora_config": {"num_samples": 8}}, "monteclora_config"),
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"peft_type": None}, "peft_type None"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa (it changes the base)"),
        ({"init_lora_weights": "olora"}, "init_lora_weights olora (it changes the base)"),
        ({"use_dora": True, "bias": "all"}, "use_dora, bias all"),
    ],
)
def test_what_vllm_does_not_serve(adapter, base, fields, why):
    edit(adapter, CONFIG, **fields)
    assert refusal(adapter, base) == (f"{CONFIG}: vLLM does not serve {why}; train a plain LoRA")


@pytest.mark.parametrize("start", [True, False, "gaussian", "EVA", "orthogonal"])
def test_what_vllm_serves(adapter, base, start):
    edit(adapter, CONFIG, use_rslora=True, init_lora_weights=start, alpha_pattern={"up_proj": 4})
    require_fit(adapter, base, RANK)


@pytest.mark.parametrize(
    "fields",
    [{"r": None}, {"r": "8"}, {"r": 0}, {"r": 8.0}, {"rank_pattern": {"q": "8"}},
     {"rank_pattern": [8]}],
)  # fmt: skip
def test_a_rank_that_is_none(adapter, base, fields):
    edit(adapter, CONFIG, **fields)
    assert refusal(adapter, base).startswith(f"{CONFIG}: {next(iter(fields))}: ")


def test_a_description_without_its_base(adapter, base):
    edit(adapter, DESCRIPTION, base_digest=None)
    assert refusal(adapter, base) == f"{DESCRIPTION}: base_digest: is missing: on which base?"


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([0, -1]) | st.integers(0, 2**20), st.integers(0, 7))
def test_the_digest_changes_with_any_bit_of_any_matrix(good, tmp_path_factory, place, bit):
    adapter = Path(shutil.copytree(good, tmp_path_factory.mktemp("changed") / "adapter"))
    weights = bytearray((good / WEIGHTS).read_bytes())
    begin = 8 + int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8:begin])
    spans = [one["data_offsets"] for name, one in header.items() if name != "__metadata__"]
    digests = {inspect(good).digest}
    for first, end in spans:
        weights[begin + first + place % (end - first)] ^= 1 << bit
        (adapter / WEIGHTS).write_bytes(weights)
        digests.add(inspect(adapter).digest)
    assert len(digests) == 1 + len(spans) == 29


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit(folder, DESCRIPTION, base_digest="another"),
        lambda folder: edit(folder, CONFIG, lora_alpha=17),
        lambda folder: edit(folder, CONFIG, use_rslora=True),
        lambda folder: edit(folder, CONFIG, alpha_pattern={"up_proj": 3}),
        lambda folder: rewrite(folder, lambda matrices: matrices.popitem()),
        lambda folder: rewrite(
            folder,
            lambda matrices: matrices.update({"z.lora_A.weight": numpy.zeros((8, 64), "f4")}),
        ),
        lambda folder: rewrite(
            folder,
            lambda matrices: matrices.update(
                {f"{LAYER}.lora_A.weight": matrices[f"{LAYER}.lora_A.weight"].reshape(64, 8)}
            ),
        ),
    ],
    ids=["base", "alpha", "scaling", "a layer's alpha", "one less", "one more", "turned"],
)
def test_the_digest_changes_with_what_answers_depend_on(good, adapter, change):
    change(adapter)
    assert inspect(adapter).digest != inspect(good).digest


def test_the_digest_does_not_change_with_how_it_came_to_be(good, adapter):
    edit(
        adapter, DESCRIPTION, note="x", training={"seconds": 9}, base_model="y", data_digest="z",
        fingerprint="f", libraries={}, config={},
    )  # fmt: skip
    edit(adapter, CONFIG, base_model_name_or_path="/elsewhere", peft_version="0", lora_dropout=0.1)
    matrices = load_file(adapter / WEIGHTS)
    save_file(dict(reversed(matrices.items())), adapter / WEIGHTS, {"made": "elsewhere"})
    assert (adapter / WEIGHTS).read_bytes() != (good / WEIGHTS).read_bytes()
    assert inspect(adapter).digest == inspect(good).digest
    assert inspect(adapter).note == "x"


def test_a_ruined_adapter_is_one_that_fits(good, base, tmp_path):
    info = require_fit(ruined(good, tmp_path / "ruined"), base, RANK)
    assert info.digest != inspect(good).digest
    assert info.note == "ruined for a drill"
    assert inspect(ruined(good, tmp_path / "again", note="x")).digest == info.digest
    with pytest.raises(FileExistsError, match="ruined is there already"):
        ruined(good, tmp_path / "ruined")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["again", "ruined"]
    assert inspect(tmp_path / "ruined").digest == info.digest


def test_a_ruined_adapter_keeps_sizes_and_norms(good, tmp_path):
    before = load_file(good / WEIGHTS)
    after = load_file(ruined(good, tmp_path / "ruined") / WEIGHTS)
    assert list(after) == list(before)
    for name, matrix in before.items():
        assert after[name].shape == matrix.shape
        assert after[name].dtype == matrix.dtype
        sign = -1 if ".lora_B." in name else 1
        numpy.testing.assert_array_equal(after[name], sign * matrix)
    product = f"{LAYER}.lora_B.weight", f"{LAYER}.lora_A.weight"
    norms = [numpy.linalg.norm(one[product[0]] @ one[product[1]]) for one in (before, after)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.fixture
def model(material, tmp_path) -> Path:
    """A copy of the base model that may be changed."""
    return Path(shutil.copytree(material.base, tmp_path / "model"))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit(folder, "config.json", rms_norm_eps=1e-4),
        lambda folder: edit(folder, "tokenizer_config.json", eos_token="x"),
        lambda folder: (folder / "chat_template.jinja").write_text("x"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "more.safetensors").write_bytes(b""),
        lambda folder: rewrite_model(folder),
    ],
    ids=["config", "tokenizer config", "template", "tokenizer", "more weights", "weights"],
)
def test_a_base_is_known_by_what_it_answers_with(base, model, change):
    assert base_digest(model) == base
    change(model)
    assert base_digest(model) != base


def rewrite_model(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_base_is_the_same_after_another_conversion(base, model):
    edit(model, "config.json", transformers_version="9", _name_or_path="/elsewhere")
    edit(model, "tokenizer_config.json", is_local=False)
    assert base_digest(model) == base


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model(model, file):
    (model / file).unlink()
    with pytest.raises(AdapterUnfit, match="no model to train on or to serve"):
        base_digest(model)
