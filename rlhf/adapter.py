"""An adapter's folder: who it is, whether it fits, and a ruined copy for drills.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes and vLLM reads
them, and `llmops_adapter.json`: the base model's name and digest, how it was trained, and a note.

Its digest covers what answers depend on: the base, the scaling and the matrices; not how it came to
be. So two trainings with the same outcome are the same adapter, and a name made from the digest is
never another one's. Nothing heavy is imported: matrices are read as plain bytes.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
DESCRIPTION = "llmops_adapter.json"
FORMAT = 1
NAME_CHARACTERS = 12
MATRIX = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Written anew by each conversion, without a meaning for what the model answers.
NOT_THE_MODEL = frozenset({"transformers_version", "_name_or_path", "is_local", "local_files_only"})
# Features of PEFT that vLLM does not serve, beside every `use_…` but rank-stabilised scaling.
UNSERVED = (
    "modules_to_save", "lora_bias", "layer_replication", "alora_invocation_tokens",
    "trainable_token_indices", "target_parameters", "arrow_config", "kasa_config",
    "monteclora_config",
)  # fmt: skip
PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal"})  # the base stays as it was
# dtype: numpy's view of it as integers, the bits of its exponent (all set: infinite or no number)
EXPONENTS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}

Matrices = Mapping[str, Mapping[str, Any]]  # name: dtype, shape, data


class AdapterUnfit(ValueError):
    """An adapter, or the base it asks for, cannot be served; the message says which and why."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """Who an adapter is.

    Attributes:
        base_digest: of the base model that it was trained on (`base_digest`).
        rank: the highest of its matrices.
        digest: SHA-256 of what its answers depend on, hex.
        target_modules: the layers that it has matrices for, as the model calls them.
        base_model: the base model's name.
        note: what people should know about it; empty as a rule.
    """

    base_digest: str
    rank: int
    digest: str
    target_modules: tuple[str, ...]
    base_model: str = ""
    note: str = ""


def base_digest(model_folder: Path) -> str:
    """SHA-256 of a model's weights, tokenizer, chat template and configuration, hex.

    It is reckoned anew each time, 0.2 s for 269 MB: kept beside the model it could be stale.

    Raises:
        AdapterUnfit: the folder holds no configuration or no weights in safetensors files.
    """
    weights = sorted(model_folder.glob("*.safetensors"))
    if not weights or not (model_folder / "config.json").is_file():
        raise AdapterUnfit(
            f"{model_folder}: no model to train on or to serve: it must hold a config.json and "
            "weights in *.safetensors"
        )
    told: dict[str, Any] = {}
    for name in ("config.json", "tokenizer_config.json"):
        path = model_folder / name
        content = orjson.loads(path.read_bytes()) if path.is_file() else {}
        told[name] = {key: value for key, value in content.items() if key not in NOT_THE_MODEL}
    whole = [model_folder / "tokenizer.json", model_folder / "chat_template.jinja", *weights]
    for path in whole:
        if path.is_file():
            with path.open("rb") as file:
                told[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digest(told)


def inspect(folder: Path) -> AdapterInfo:
    """Read who the adapter in `folder` is.

    Raises:
        AdapterUnfit: a file is missing or broken.
    """
    config, described = _json(folder, CONFIG), _json(folder, DESCRIPTION)
    return _info(folder, config, described, _matrices(folder))


def require_fit(folder: Path, base_digest: str, max_rank: int) -> AdapterInfo:
    """Make sure that vLLM can serve the adapter on the base, and that its numbers are numbers.

    Raises:
        AdapterUnfit: it cannot; the message says why.
    """
    config, described = _json(folder, CONFIG), _json(folder, DESCRIPTION)
    matrices = _matrices(folder)
    info = _info(folder, config, described, matrices)
    if info.base_digest != base_digest:
        raise AdapterUnfit(
            f"{folder}: was trained on another base: {info.base_model} {info.base_digest[:12]}, "
            f"not {base_digest[:12]}; train it again on this one"
        )
    _require_served(folder, config)
    if info.rank > max_rank:
        raise AdapterUnfit(
            f"{folder}: rank {info.rank} is above the engine's {max_rank}; train with a lower rank "
            "or start the engine with a higher --max-lora-rank"
        )
    _require_pairs(folder, matrices)
    _require_numbers(folder, matrices)
    return info


def served_name(name: str, info: AdapterInfo) -> str:
    """The name that an adapter of model `name` is served by: another content, another name."""
    return f"{name}-{info.digest[:NAME_CHARACTERS]}"


def ruined(adapter_folder: Path, out: Path, note: str = "ruined for a drill") -> Path:
    """Write a copy that loads well and answers badly; `note` is all that tells it from a real one.

    What it learnt is taken from the base model instead of added: each matrix that writes into the
    model has its sign turned. Sizes and norms stay. (Shuffled rows were tried: on the demo's task
    the base model shrugs them off.) Returns `out`, which must not exist.
    """
    from safetensors.torch import load_file, save_file

    if out.exists():
        raise FileExistsError(f"{out} is there already: choose another folder")
    described = _json(adapter_folder, DESCRIPTION)
    matrices = load_file(adapter_folder / WEIGHTS)
    turned = {name: -matrix if ".lora_B." in name else matrix for name, matrix in matrices.items()}
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    shutil.copyfile(adapter_folder / CONFIG, fresh / CONFIG)
    save_file(turned, fresh / WEIGHTS, {"format": "pt"})
    (fresh / DESCRIPTION).write_bytes(
        orjson.dumps({**described, "note": note}, option=orjson.OPT_INDENT_2)
    )
    fresh.rename(out)
    return out


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = orjson.loads((folder / name).read_bytes())
    except OSError as error:
        raise AdapterUnfit(f"{folder}: no adapter: {name} is missing ({error.strerror})") from error
    except ValueError as error:
        raise AdapterUnfit(f"{folder}: {name} is broken: {error}") from error
    if not isinstance(content, dict):
        raise AdapterUnfit(f"{folder}: {name} is broken: not a JSON object")
    return content


def _matrices(folder: Path) -> Matrices:
    from safetensors import SafetensorError, deserialize

    try:
        read = deserialize((folder / WEIGHTS).read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise AdapterUnfit(
            f"{folder}: no adapter: {WEIGHTS} is missing ({error.strerror})"
        ) from error
    except SafetensorError as error:
        raise AdapterUnfit(f"{folder}: {WEIGHTS} is broken: {error}") from error
    if not read:
        raise AdapterUnfit(f"{folder}: {WEIGHTS} holds no matrices")
    return dict(read)


def _info(
    folder: Path, config: Mapping[str, Any], described: Mapping[str, Any], matrices: Matrices
) -> AdapterInfo:
    found = [MATRIX.fullmatch(name) for name in matrices]
    modules = {one["module"].rpartition(".")[2] for one in found if one}
    base = described.get("base_digest")
    if not isinstance(base, str):
        raise AdapterUnfit(f"{folder}: {DESCRIPTION}: base_digest: is missing: on which base?")
    told = {
        "base": base,
        "scaling": {
            name: config.get(name) or None
            for name in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
        },
        "matrices": {
            name: [one["dtype"], one["shape"], hashlib.sha256(one["data"]).hexdigest()]
            for name, one in matrices.items()
        },
    }
    return AdapterInfo(
        base_digest=base,
        rank=_rank(folder, config, matrices),
        digest=_digest(told),
        target_modules=tuple(sorted(modules)),
        base_model=str(described.get("base_model", "")),
        note=str(described.get("note", "")),
    )


def _rank(folder: Path, config: Mapping[str, Any], matrices: Matrices) -> int:
    """The highest rank, by the configuration or by the matrices: the engine makes room for it."""
    pattern = config.get("rank_pattern") or {}
    patterned = [*pattern.values()] if isinstance(pattern, dict) else [pattern]
    for name, ranks in (("r", [config.get("r")]), ("rank_pattern", patterned)):
        if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
            raise AdapterUnfit(
                f"{folder}: {CONFIG}: {name}: is not a whole number above 0: no LoRA adapter"
            )
    shapes = [one["shape"] for name, one in matrices.items() if ".lora_A." in name]
    told: list[int] = [config["r"], *patterned, *(shape[0] for shape in shapes if shape)]
    return max(told)


def _require_served(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse features of PEFT that the engine would refuse, or worse, leave out."""
    switches = (name for name in config if name.startswith("use_") and name != "use_rslora")
    found = [name for name in (*UNSERVED, *switches) if config.get(name)]
    if config.get("peft_type") != "LORA":
        found.append(f"peft_type {config.get('peft_type')}")
    if config.get("bias", "none") != "none":
        found.append(f"bias {config['bias']}")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        found.append(f"init_lora_weights {start} (it changes the base)")
    if found:
        raise AdapterUnfit(
            f"{folder}: {CONFIG}: vLLM does not serve {', '.join(found)}; train a plain LoRA"
        )


def _require_pairs(folder: Path, matrices: Matrices) -> None:
    """Every matrix has its other half, of the same rank."""
    sides: dict[str, dict[str, list[int]]] = {}
    for name, one in matrices.items():
        found = MATRIX.fullmatch(name)
        if found is None or len(one["shape"]) != 2:
            raise AdapterUnfit(f"{folder}: {WEIGHTS}: {name} is no LoRA matrix that vLLM serves")
        sides.setdefault(found["module"], {})[found["side"]] = one["shape"]
    for module, shapes in sides.items():
        if set(shapes) != {"A", "B"}:
            raise AdapterUnfit(f"{folder}: {WEIGHTS}: {module} has only lora_{min(shapes)}")
        if shapes["A"][0] != shapes["B"][1]:
            raise AdapterUnfit(
                f"{folder}: {WEIGHTS}: {module}: ranks differ: {shapes['A']} and {shapes['B']}"
            )


def _require_numbers(folder: Path, matrices: Matrices) -> None:
    import numpy

    kinds = " or ".join(EXPONENTS)
    for name, one in matrices.items():
        if one["dtype"] not in EXPONENTS:
            raise AdapterUnfit(f"{folder}: {WEIGHTS}: {name} is {one['dtype']}, not {kinds}")
        view, exponent = EXPONENTS[one["dtype"]]
        bits = numpy.frombuffer(one["data"], dtype=view)
        if ((bits & exponent) == exponent).any():
            raise AdapterUnfit(
                f"{folder}: {WEIGHTS}: {name} holds infinite values or NaN; do not serve it, "
                "train it again"
            )


def _digest(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()
