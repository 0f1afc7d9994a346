"""The loss is on the answers, all of them and nothing else: held to the plain full computation."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf import lora
from rlhf.batches import IGNORED, Collator, answer_loss
from rlhf.rows import Row, read_rows
from rlhf.training import FinetuneConfig
from rlhf.undisturbed import undisturbed

PAD = 2
ROWS = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32)).map(
        lambda one: drawn(*one)
    ),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with undisturbed(1):
        yield


def drawn(asked: int, answered: int, seed: int) -> Row:
    draw = random.Random(seed)
    return Row(tuple(draw.randrange(99) for _ in range(asked + answered)), asked)


def tiny(base, dtype=torch.float32, attention="eager"):
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation=attention)


@pytest.fixture(scope="module")
def exact(material):
    return tiny(material.base)


def full_loss(model, rows, precision=torch.float32):
    """The model's own loss, over whole padded rows with labels on the answers' tokens."""
    longest = max(len(row.tokens) for row in rows)
    shape = (len(rows), longest)
    tokens, mask, labels = torch.full(shape, PAD), torch.zeros(shape), torch.full(shape, -100)
    for line, row in enumerate(rows):
        for place, token in enumerate(row.tokens):
            tokens[line, place], mask[line, place] = token, 1
            if place >= row.answer_at:
                labels[line, place] = token
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        return model(input_ids=tokens, attention_mask=mask, labels=labels).loss


@given(ROWS)
@settings(deadline=None, max_examples=40)
def test_the_loss_is_that_of_the_full_computation(exact, rows):
    with torch.no_grad():
        loss = answer_loss(exact, Collator(PAD)(rows), torch.float32)
        assert loss.item() == pytest.approx(full_loss(exact, rows).item(), rel=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_of_real_rows(material, attention, precision):
    model = tiny(material.base, precision, attention)
    tokenizer = AutoTokenizer.from_pretrained(material.base)
    rows = read_rows(material.train, tokenizer, 200).kept[:8]
    assert len({len(row.tokens) for row in rows}) > 1
    found = []
    for loss in (
        answer_loss(model, Collator(PAD)(rows), precision),
        full_loss(model, rows, precision),
    ):
        model.zero_grad()
        loss.backward()
        gradients = torch.cat([one.grad.float().flatten() for one in model.parameters()])
        found.append((loss.item(), gradients))
    (ours, our_gradients), (plain, plain_gradients) = found
    assert ours == pytest.approx(plain, rel=1e-4)
    off = (our_gradients - plain_gradients).norm() / plain_gradients.norm()
    assert off < (1e-5 if precision == torch.float32 else 0.02)


@given(ROWS)
@settings(deadline=None)
def test_a_batch_has_the_answers_and_nothing_else(rows):
    batch = Collator(PAD)(rows)
    longest = max(len(row.tokens) for row in rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(rows), longest)
    assert batch["targets"].shape == (len(rows), len(batch["positions"]))
    for line, row in enumerate(rows):
        length = int(batch["attention_mask"][line].sum())
        assert tuple(batch["input_ids"][line, :length].tolist()) == row.tokens
        learnt = {
            int(position) + 1: int(target)
            for position, target in zip(batch["positions"], batch["targets"][line], strict=True)
            if target != IGNORED
        }
        assert learnt == dict(list(enumerate(row.tokens))[row.answer_at :])


def test_the_mean_over_a_file_counts_every_token_alike(material):
    config = FinetuneConfig(batch_size=3)
    rows = [drawn(5 + n, 1 + 3 * n, n) for n in range(8)]
    with undisturbed(1):
        learner = lora.learner(material.base, config, pad=PAD, longest=60)
    mean = lora.mean_loss(learner, rows)
    assert lora.mean_loss(learner, rows[::-1]) == mean
    assert learner.model.training
    with torch.no_grad():
        losses = [full_loss(learner.model, [row], lora.precision()).item() for row in rows]
    counts = [len(row.tokens) - row.answer_at for row in rows]
    plain = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    assert mean == pytest.approx(plain, rel=1e-3)
