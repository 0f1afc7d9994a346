"""The benchmark's own parts: its stream client, its ratios and its table."""

from pathlib import Path

import pytest

from tests.bench import finetune
from tests.bench.report import ratio_table, ratios, table
from tests.bench.stream_client import run_streams, stream_request
from tests.rlhf.tiny_model import write_tiny_model
from tests.scripted_upstream import ScriptedUpstream


async def test_the_stream_client_sees_every_event_and_its_lag() -> None:
    async with ScriptedUpstream() as upstream:
        model = "chat,timestamp,tokens=12,paced-ms=10,slice=50"
        request = stream_request(f"{upstream.url}/chat/completions", model, {})
        load = await run_streams(request, streams=4, stagger_seconds=0.01, cpu_seconds=lambda: 1.0)
    assert load.whole == len(load.first) == 4
    assert len(load.lags) == 4 * 12
    assert 0 < min(load.lags) < max(load.lags) < 2e9
    assert 0 < load.window_events < 4 * 12


async def test_streams_that_are_cut_are_not_counted_as_whole() -> None:
    async with ScriptedUpstream() as upstream:
        request = stream_request(f"{upstream.url}/chat/completions", "timestamp,cut-after=5", {})
        load = await run_streams(request, streams=2, stagger_seconds=0, cpu_seconds=lambda: 0.0)
    assert load.whole == 0
    assert len(load.lags) == 2 * 4


def test_ratios_are_met_or_missed() -> None:
    figures = {
        "gateway": {"cpu_us_per_request": 100.0, "added_p50_us": 300.0},
        "vllm-router": {"cpu_us_per_request": 80.0, "added_p50_us": 100.0},
        "LiteLLM": {"cpu_us_per_request": 12_000.0},
    }
    found = ratios(figures)
    assert [(one["peer"], one["met"]) for one in found] == [
        ("vllm-router", True),
        ("LiteLLM", True),
        ("vllm-router", False),
    ]
    assert "| CPU per unary request / LiteLLM | 1/120 | ≤ 1/30 | met |" in ratio_table(found)
    assert "| gateway | - | 300 | - |" in table(figures)


def test_the_bare_loop_computes_what_finetune_computes(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    said: list[str] = []
    config = finetune.configuration(steps=3, threads=1)
    runs = finetune.measure(model, config, repeats=1, say=said.append)
    assert said == ["round 1/1: 3 steps of finetune", "round 1/1: 3 steps of bare PEFT loop"]
    (ours,), (bare,) = runs[finetune.OURS], runs[finetune.BARE]
    assert len(ours.losses) == len(bare.losses) == 3
    assert ours.losses[0] == pytest.approx(bare.losses[0], rel=1e-3)
    assert ours.losses[0] > ours.losses[-1]
    assert bare.losses[0] > bare.losses[-1]
    ratio = ours.per_step(0) / bare.per_step(0)
    assert f"| ratio | {ratio:.2f} | " in finetune.table(runs)
