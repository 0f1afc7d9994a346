"""Stages that do as a script says, in place of `pipelines.stages`, and note their calls.

The script is a JSON file that the environment names (SCRIPT): `examples` and `users` of the data
set, `steps` and `step_seconds` of a training that keeps checkpoints beside its output, `fail` (a
stage), `connect` (a port on this machine).
"""

import argparse
import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path


def note(stage: str) -> dict:
    path = Path(os.environ["SCRIPT"])
    with path.with_name("calls").open("a") as file:
        file.write(f"{stage}\n")
    script: dict = json.loads(path.read_text())
    print(json.dumps({"percent": 0, "what": stage}), flush=True)
    if script.get("fail") == stage:
        print("about to give up", flush=True)
        print(json.dumps({"error": f"{stage} was told to fail"}), flush=True)
        sys.exit(1)
    if script.get("crash") == stage:
        raise LookupError(f"{stage} crashed")
    if script.get("connect"):
        with socket.socket() as one:
            one.connect_ex(("127.0.0.1", script["connect"]))
    return script


def preprocess(spec: Path, out: Path) -> None:
    script = note("preprocess")
    out.mkdir(parents=True)
    kept = {name: script.get(name) for name in ("examples", "users", "dropped")}
    (out / "raw.json").write_text(json.dumps(kept))


def features(spec: Path, preprocessed: Path, out: Path) -> None:
    from pipelines.datasets import freeze
    from rlhf.examples import Collected, Example, Selection

    note("features")
    raw = json.loads((preprocessed / "raw.json").read_text())
    examples = tuple(
        Example(
            messages=({"role": "user", "content": f"no. {number}"},),
            completion=str(number),
            source="demonstration",
            user=f"u{number % (raw['users'] or 10)}",
            request_id=f"r{number:04}",
            feedback_id=f"f{number:04}",
            content_hash=f"h{number:04}",
        )
        for number in range(raw["examples"])
    )
    collected = Collected(examples, {"disapproved": raw["dropped"] or 0}, Selection("a", "b"))
    manifest = freeze(collected, "extractor", out, validation_share=0.1, seed=0, minimum=2)
    (out / "id").write_text(manifest.dataset_id)


def train(spec: Path, dataset: Path, out: Path) -> None:
    script = note("train")
    checkpoints = out.with_name(f"{out.name}.checkpoints")
    checkpoints.mkdir(exist_ok=True)
    resumed = len(list(checkpoints.iterdir()))
    for step in range(resumed, script.get("steps", 1)):
        time.sleep(script.get("step_seconds", 0))
        (checkpoints / f"step-{step}").touch()
        print(json.dumps({"percent": step, "what": "step"}), flush=True)
    out.mkdir(parents=True)
    size = len((dataset / "train.jsonl").read_text())
    (out / "training.json").write_text(json.dumps({"resumed_from": resumed, "size": size}))
    shutil.rmtree(checkpoints)


def evaluate(spec: Path, dataset: Path, training: Path, out: Path) -> None:
    note("evaluate")
    out.mkdir(parents=True)
    shutil.copy(training / "training.json", out / "results.json")


def gate(spec: Path, evaluation: Path, out: Path) -> None:
    note("gate")
    out.mkdir(parents=True)
    results = json.loads((evaluation / "results.json").read_text())
    (out / "verdict.json").write_text(json.dumps({"decision": "promote"} | results))


def register(spec: Path, training: Path, verdict: Path, out: Path) -> None:
    note("register")
    out.mkdir(parents=True)
    judged = json.loads((verdict / "verdict.json").read_text())
    given = spec.read_text()
    (out / "version.json").write_text(json.dumps({"spec": given, "verdict": judged}))


def experiment(spec: Path, version: Path, out: Path, live: bool = True) -> None:
    note("experiment" if live else "idle")
    out.mkdir(parents=True)
    shutil.copy(version / "version.json", out / "experiment.json")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    for name in (
        "spec", "preprocessed", "dataset", "training", "evaluation", "verdict", "version", "out"
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=Path)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    globals()[given.pop("stage")](**given)


if __name__ == "__main__":
    main()
