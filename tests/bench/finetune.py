"""`python -m tests.bench.finetune`: seconds per step of `finetune`, beside a bare PEFT loop.

Both train on the same batch of eight extraction rows, in the same precision, in turns. Counted are
whole steps after the first, ours with its logging and its checkpoints (every ten steps).
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from evals.extraction import answer_text, training_pool
from rlhf.finetune import FinetuneConfig, finetune
from tests.bench.progress import Progress

MODEL = Path(".llmops/models/smollm2-135m-instruct")
ROWS = 8
MOST = 1.3
OURS, BARE = "finetune", "bare PEFT loop"


@dataclass
class Run:
    """Losses of a run's steps, and the clocks after each: of the wall and of the processors."""

    losses: list[float] = field(default_factory=list)
    clocks: list[tuple[float, float]] = field(default_factory=list)

    def step(self, loss: float) -> None:
        """A step has ended."""
        self.losses.append(loss)
        self.clocks.append((time.perf_counter(), time.process_time()))

    def per_step(self, clock: int) -> float:
        """Seconds a step, without the first one."""
        return (self.clocks[-1][clock] - self.clocks[0][clock]) / (len(self.clocks) - 1)


def configuration(steps: int, threads: int | None = None) -> FinetuneConfig:
    """The defaults; all rows in each step."""
    return FinetuneConfig(epochs=steps, batch_size=ROWS, threads=threads)


def write_batch(path: Path) -> Path:
    """The rows of one batch."""
    rows = (
        {"messages": case.messages, "completion": answer_text(case.expected)}
        for case in training_pool(0, ROWS)
    )
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return path


def ours(model: Path, rows: Path, config: FinetuneConfig) -> Run:
    """Steps of `finetune`, each on all rows."""
    run = Run()

    def log(step: int, metrics: Mapping[str, float]) -> None:
        run.step(metrics["loss"])

    with tempfile.TemporaryDirectory() as folder:
        finetune(config, model, rows, None, Path(folder) / "adapter", log)
    return run


def bare(model: Path, rows: Path, config: FinetuneConfig) -> Run:
    """The loop that a person would write: the model's own loss on padded rows with labels."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from rlhf.lora import precision
    from rlhf.undisturbed import undisturbed

    run = Run()
    with undisturbed(config.threads):
        batch = padded(model, rows, config.max_length)
        matrices = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        learner = get_peft_model(
            AutoModelForCausalLM.from_pretrained(model, dtype=precision()), matrices
        )
        weights = [one for one in learner.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=config.learning_rate)
        learner.train()
        for _ in range(config.epochs):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision() == torch.bfloat16):
                loss = learner(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.step(loss.item())
    return run


def padded(model: Path, path: Path, max_length: int) -> dict[str, Any]:
    """The rows as the model takes them; labels are the answers' tokens, -100 elsewhere."""
    import torch
    from transformers import AutoTokenizer

    from rlhf.rows import read_rows

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = read_rows(path, tokenizer, max_length).kept
    shape = (len(rows), max(len(row.tokens) for row in rows))
    tokens, mask = torch.full(shape, tokenizer.pad_token_id), torch.zeros(shape)
    labels = torch.full(shape, -100)
    for line, row in enumerate(rows):
        length = len(row.tokens)
        tokens[line, :length] = torch.tensor(row.tokens)
        mask[line, :length] = 1
        labels[line, row.answer_at : length] = torch.tensor(row.tokens[row.answer_at :])
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def measure(
    model: Path, config: FinetuneConfig, *, repeats: int, say: Callable[[str], None]
) -> dict[str, list[Run]]:
    """Runs of both, in turns."""
    runs: dict[str, list[Run]] = {OURS: [], BARE: []}
    with tempfile.TemporaryDirectory() as folder:
        rows = write_batch(Path(folder) / "rows.jsonl")
        for number in range(1, repeats + 1):
            for name, train in ((OURS, ours), (BARE, bare)):
                say(f"round {number}/{repeats}: {config.epochs} steps of {name}")
                runs[name].append(train(model, rows, config))
    return runs


def ratio(runs: Mapping[str, list[Run]], clock: int = 0) -> float:
    """Median of the rounds' ratios: what else the machine does meets both of a round."""
    pairs = zip(runs[OURS], runs[BARE], strict=True)
    return median(one.per_step(clock) / other.per_step(clock) for one, other in pairs)


def table(runs: Mapping[str, list[Run]]) -> str:
    """Medians of the rounds, and the ratios."""
    lines = ["| | s/step | CPU s/step | loss, first step | last step |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for name, found in runs.items():
        wall, cpu = (median(run.per_step(clock) for run in found) for clock in (0, 1))
        first, last = found[-1].losses[0], found[-1].losses[-1]
        lines.append(f"| {name} | {wall:.3f} | {cpu:.3f} | {first:.4f} | {last:.4f} |")
    lines.append(f"| ratio | {ratio(runs):.2f} | {ratio(runs, 1):.2f} | | |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print; 1 if the goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.finetune", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="as many as there are cores, if not given")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    config = configuration(arguments.steps, arguments.threads)
    say = Progress(sys.stderr)
    runs = measure(arguments.model, config, repeats=arguments.repeats, say=say)
    verdict = "met" if ratio(runs) <= MOST else "MISSED"
    print(f"\n{table(runs)}\n\nratio {ratio(runs):.2f} (goal: at most {MOST}) {verdict}")
    print(f"{os.cpu_count()} processors, load {load:.1f} at the start")
    return 0 if verdict == "met" else 1


if __name__ == "__main__":
    sys.exit(main())
