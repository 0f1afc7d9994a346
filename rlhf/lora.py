"""LoRA matrices on a frozen base model, trained by the Trainer of transformers.

[LoRA](https://arxiv.org/abs/2106.09685) by PEFT. Base weights are held in bfloat16 where the
processor multiplies it in hardware, the matrices in float32, so that small steps are not rounded
away. Imports torch, transformers and peft: import it in functions only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from transformers import (
    AutoModelForCausalLM,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from rlhf import checkpoints
from rlhf.batches import Collator, answer_loss
from rlhf.rows import Row
from rlhf.training import Diverged, FinetuneConfig

KEPT_CHECKPOINTS = 2  # the newest may not be sealed yet
LARGEST_GRADIENT = 1.0
# Up to this many tokens the plain attention is quicker on a CPU than the fused one (measured).
PLAIN_ATTENTION_TOKENS = 256

Log = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class Learner:
    """A model with matrices to train. `pad` is the token that fills batches up."""

    model: Any
    config: FinetuneConfig
    pad: int


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training came to: losses in nats a token of the answers."""

    steps: int
    first_loss: float
    last_loss: float


def precision() -> torch.dtype:
    """What base weights are held and multiplied in here."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    able = torch.cpu.get_capabilities()
    hardware = any(able.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if hardware else torch.float32


def learner(base: Path, config: FinetuneConfig, *, pad: int, longest: int) -> Learner:
    """The base model, frozen, with fresh LoRA matrices; `longest` is that of the rows, in tokens.

    The matrices depend on the seed alone.
    """
    plain = not torch.cuda.is_available() and longest <= PLAIN_ATTENTION_TOKENS
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=precision(),
        attn_implementation="eager" if plain else None,
        local_files_only=True,
    )
    torch.manual_seed(config.seed)
    modules = config.target_modules
    matrices = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )
    return Learner(get_peft_model(model, matrices), config, pad)


def train(
    learner: Learner,
    rows: Sequence[Row],
    folder: Path,
    resume: checkpoints.Checkpoint | None,
    log: Log,
) -> Trained:
    """Train the matrices, with checkpoints in `folder`; or go on from one of them.

    Raises:
        Diverged: a loss or a gradient is no number.
    """
    model, config = learner.model, learner.config
    steps = config.steps(len(rows))
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: config.rate(done, steps))
    trainer = AnswerTrainer(
        model=model,
        args=_arguments(config, folder),
        train_dataset=rows,
        data_collator=Collator(learner.pad),
        optimizers=(optimizer, schedule),
        callbacks=[EachStep(log, steps), Sealing()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    with disable_input_dtype_casting(model):
        trainer.train(resume_from_checkpoint=str(resume.folder) if resume else None)
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    return Trained(trainer.state.global_step, losses[0], losses[-1])


def mean_loss(learner: Learner, rows: Sequence[Row]) -> float:
    """Mean loss of the rows' answers, nats a token; every token counts alike."""
    model, batch_size = learner.model, learner.config.batch_size
    collate, total, tokens = Collator(learner.pad), 0.0, 0
    device = next(model.parameters()).device
    in_order = sorted(rows, key=lambda row: len(row.tokens))
    was_training = model.training
    model.eval()
    with torch.inference_mode(), disable_input_dtype_casting(model):
        for start in range(0, len(in_order), batch_size):
            part = in_order[start : start + batch_size]
            count = sum(len(row.tokens) - row.answer_at for row in part)
            batch = {name: one.to(device) for name, one in collate(part).items()}
            total += answer_loss(model, batch, precision()).item() * count
            tokens += count
    model.train(was_training)
    return total / tokens


def save(learner: Learner, folder: Path, base_name: str) -> None:
    """Write the matrices and their configuration, which names the base and no path to it."""
    model = learner.model
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # a form for model hubs, not filled in


class AnswerTrainer(Trainer):
    """The library's trainer with the loss on answers."""

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """The loss of one batch."""
        return answer_loss(model, inputs, precision())


class EachStep(TrainerCallback):
    """Logs each step; raises Diverged before a checkpoint could be made of a ruined model."""

    def __init__(self, log: Log, steps: int) -> None:
        self.log = log
        self.steps = steps
        self.began = 0.0
        self.good: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.began = perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What the trainer logged after a step, or (without a loss) at the end."""
        logs = kwargs["logs"]
        if "loss" not in logs:
            return
        loss, gradient = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        if not (isfinite(loss) and isfinite(gradient)):
            raise Diverged(state.global_step, self.good, loss, gradient)
        self.good = loss
        self.log(
            state.global_step,
            {
                "loss": loss,
                "learning_rate": float(logs["learning_rate"]),
                "step_seconds": perf_counter() - self.began,
                "steps": float(self.steps),
            },
        )


class Sealing(TrainerCallback):
    """Declares each checkpoint whole once it is written."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint was written."""
        folder = Path(args.output_dir)
        checkpoints.seal(folder / f"{checkpoints.PREFIX}{state.global_step}")


def _arguments(config: FinetuneConfig, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=config.epochs,
        max_grad_norm=LARGEST_GRADIENT,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=KEPT_CHECKPOINTS,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
