"""A model of the same make as the real one, small enough to be trained in seconds.

Two Llama layers, hidden size 64, with a tokenizer of its own (one token a character) and a chat
template in ChatML. It knows nothing, but it learns to copy.
"""

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<unk>", "<|im_start|>", "<|im_end|>")


def write_tiny_model(folder: Path, *, template: str = TEMPLATE, seed: int = 7) -> Path:
    """Write the model into `folder`; the same weights for the same seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tokenizer(template: str = TEMPLATE) -> Any:
    """A token a character (printable ASCII and the line break), and three special ones."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, "\n", *map(chr, range(32, 127))]
    inner = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    tokenizer.chat_template = template
    return tokenizer


def write_rows(path: Path, count: int, *, first: int = 0) -> Path:
    """Rows that ask for one of five words, and answer with it as JSON."""
    words = ("oslo", "rome", "paris", "lima", "quito")
    with path.open("w") as file:
        for number in range(first, first + count):
            word = words[number % len(words)]
            messages = [
                {"role": "system", "content": "City as JSON."},
                {"role": "user", "content": f"{number} people live in {word}."},
            ]
            row = {"messages": messages, "completion": json.dumps({"city": word})}
            file.write(json.dumps(row) + "\n")
    return path
