"""Supervised fine-tuning: a LoRA adapter of a base model, from rows of messages and completions.

- The adapter's folder appears whole, by rename, and is fit for vLLM (`rlhf.adapter.require_fit`).
- A training that was killed at any time goes on from its last whole checkpoint and ends with the
  same adapter; one with other rows, configuration, base model or libraries starts anew. One that
  was finished is not done again.
- The same rows, configuration and base give the same adapter on the same machine.
- Nothing is printed, and no setting of the process stays changed.
"""

import gc
import hashlib
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson

from rlhf import checkpoints
from rlhf.adapter import DESCRIPTION, FORMAT, AdapterUnfit, base_digest, require_fit
from rlhf.rows import BadRow, Rows, read_rows
from rlhf.training import Diverged, EmptyTraining, FinetuneConfig

__all__ = ["BadRow", "Diverged", "EmptyTraining", "FinetuneConfig", "FinetuneResult", "finetune"]

LIBRARIES = ("torch", "transformers", "peft", "accelerate")

Log = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """A finished training.

    Attributes:
        adapter: the adapter's folder.
        steps: how many there were, with those before a kill.
        resumed_from: the step that it went on from; None if it was done in one go.
        first_loss, last_loss: of the first and the last step's batch, nats a token of the answers.
        validation_loss: over all rows of the validation file; None without such rows.
        seconds: of the call that finished it, from loading the libraries to the rename.
        dropped: rows that were too long, each with its line and length.
    """

    adapter: Path
    steps: int
    resumed_from: int | None
    first_loss: float
    last_loss: float
    validation_loss: float | None
    seconds: float
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Job:
    config: FinetuneConfig
    base_model: Path
    base_digest: str
    train: Path
    validation: Path | None
    log: Log


@dataclass(frozen=True, slots=True)
class _Read:
    """The tokenised rows; `pad` is the token that fills batches up."""

    train: Rows
    validation: Rows
    pad: int

    @property
    def longest(self) -> int:
        return max(len(row.tokens) for row in (*self.train.kept, *self.validation.kept))


def finetune(
    config: FinetuneConfig,
    base_model: Path,
    train: Path,
    validation: Path | None,
    out: Path,
    log: Log,
) -> FinetuneResult:
    """Train an adapter of `base_model` into the folder `out`.

    `train` and `validation` have a row `{"messages": [...], "completion": "..."}` on each line. A
    row of more than `max_length` tokens is left out, counted in `dropped` and named there.

    `log(step, metrics)` is called after each step with `loss`, `learning_rate`, `step_seconds` and
    `steps` (how many there will be), and with `validation_loss` before the first step (as step 0)
    and after the last. What it raises ends the call; the next one goes on from the last checkpoint.

    Checkpoints lie beside `out`, in `<out>.checkpoints`, until the adapter is there. If `out` holds
    an adapter of the same training, its result is returned at once; one of another training is
    replaced, once the new one is whole.

    Raises:
        EmptyTraining: no row is there, or none is short enough.
        BadRow: a line cannot be trained on.
        Diverged: a loss or a gradient is no number. Neither result nor checkpoints are left.
        AdapterUnfit: the base model's folder holds no weights, or vLLM would not serve the result.
        FileExistsError: `out` is there and not such an adapter.
    """
    began = perf_counter()
    job = _Job(config, base_model, base_digest(base_model), train, validation, log)
    fingerprint = _fingerprint(job)
    beside, fresh = out.with_name(f"{out.name}.checkpoints"), _hidden(out, "new")
    _clear_up(out)
    if (finished := _finished(out, job, fingerprint)) is not None:
        shutil.rmtree(beside, ignore_errors=True)  # a kill came between the rename and this
        return finished
    checkpoints.prepare(beside, fingerprint)
    try:
        result = _train(job, beside, fresh)
        described = _description(job, fingerprint, result, perf_counter() - began)
        (fresh / DESCRIPTION).write_bytes(orjson.dumps(described, option=orjson.OPT_INDENT_2))
        require_fit(fresh, job.base_digest, config.rank)
        _publish(fresh, out)
    except (AdapterUnfit, Diverged, EmptyTraining, BadRow):  # to go on would end the same way
        shutil.rmtree(beside)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(beside)
    return _result(out, described)


def _train(job: _Job, beside: Path, fresh: Path) -> Mapping[str, Any]:
    """Train and save the adapter into `fresh`; what is to be told about it."""
    from rlhf import lora
    from rlhf.undisturbed import undisturbed

    config, last = job.config, checkpoints.newest(beside)
    with undisturbed(config.threads):
        read = _read(job)
        rows, held = read.train.kept, read.validation.kept
        learner = lora.learner(job.base_model, config, pad=read.pad, longest=read.longest)
        if held and last is None:
            job.log(0, {"validation_loss": lora.mean_loss(learner, held)})
        done = lora.train(learner, rows, beside, last, job.log)
        # Without rows held out it still shows whether the last step was the one too many.
        after = lora.mean_loss(learner, held or rows[: config.batch_size])
        if not math.isfinite(after):
            raise Diverged(done.steps, done.last_loss, after, math.nan)
        if held:
            job.log(done.steps, {"validation_loss": after})
        lora.save(learner, fresh, job.base_model.name)
        del learner
        gc.collect()  # the trainer's cycles hold the model
    return {
        "rows": len(rows),
        "dropped": [*read.train.dropped, *read.validation.dropped],
        "resumed_from": last.step if last else None,
        "validation_loss": after if held else None,
    } | asdict(done)


def _read(job: _Job) -> _Read:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base_model, local_files_only=True)
    most = job.config.max_length
    train = read_rows(job.train, tokenizer, most)
    if not train.kept:
        why = f"all {len(train.dropped)} rows are too long" if train.dropped else "it has no rows"
        raise EmptyTraining(f"{job.train}: nothing to train on: {why}")
    validation = Rows((), ())
    if job.validation is not None:
        validation = read_rows(job.validation, tokenizer, most)
    return _Read(train, validation, tokenizer.pad_token_id or 0)


def _fingerprint(job: _Job) -> str:
    """What a training's outcome depends on, its validation loss too, as one digest."""
    told = {
        "format": FORMAT,
        "config": asdict(job.config),
        "base": job.base_digest,
        "train": checkpoints.digest_of(job.train),
        "validation": checkpoints.digest_of(job.validation) if job.validation else None,
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _description(
    job: _Job, fingerprint: str, training: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "base_model": job.base_model.name,
        "base_digest": job.base_digest,
        "data_digest": checkpoints.digest_of(job.train),
        "config": asdict(job.config),
        "libraries": {name: version(name) for name in LIBRARIES},
        "fingerprint": fingerprint,
        "training": {**training, "seconds": round(seconds, 3)},
        "note": "",
    }


def _finished(out: Path, job: _Job, fingerprint: str) -> FinetuneResult | None:
    """The result that is in `out` already, if it is of this training and was not damaged."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        described = orjson.loads((out / DESCRIPTION).read_bytes())
        found = described["fingerprint"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FileExistsError(
            f"{out} is there and not an adapter of ours (no {DESCRIPTION}): "
            "remove it or choose another folder"
        ) from error
    if found != fingerprint:
        return None
    try:
        require_fit(out, job.base_digest, job.config.rank)
    except AdapterUnfit:
        return None
    return _result(out, described)


def _result(out: Path, described: Mapping[str, Any]) -> FinetuneResult:
    told = described["training"]
    return FinetuneResult(
        adapter=out,
        steps=told["steps"],
        resumed_from=told["resumed_from"],
        first_loss=told["first_loss"],
        last_loss=told["last_loss"],
        validation_loss=told["validation_loss"],
        seconds=told["seconds"],
        dropped=tuple(told["dropped"]),
    )


def _hidden(out: Path, state: str) -> Path:
    return out.with_name(f".{out.name}.{state}")


def _clear_up(out: Path) -> None:
    """Remove what a killed call left beside `out`; what it was about to replace comes back."""
    old = _hidden(out, "old")
    if old.exists() and not out.exists():
        old.rename(out)
    for left in (old, _hidden(out, "new")):
        shutil.rmtree(left, ignore_errors=True)


def _publish(fresh: Path, out: Path) -> None:
    """Give `fresh` its name; another training's adapter of that name goes."""
    checkpoints.sync(fresh)
    old = _hidden(out, "old")
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)
