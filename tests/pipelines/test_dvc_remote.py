"""A bucket as DVC's remote, over S3's API: what is gone here is fetched from there."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from deploy.migrations import upgrade
from gateway.settings import load_settings
from pipelines.data_plan import DataPlan
from pipelines.installation import open_installation
from pipelines.manifest import read_manifest
from pipelines.snapshots import checkout, freeze, listed
from pipelines.workspace import Workspace
from tests.gateway_process import configuration
from tests.pipelines.s3_server import BUCKET, KEYS, names_in, s3_server
from tests.pipelines.stage_script import StageScript
from tests.pipelines.test_workspace import spec

SINCE, UNTIL = datetime(2013, 2, 10, tzinfo=UTC), datetime(2013, 2, 11, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


def test_snapshots(bucket: str, tmp_path: Path) -> None:
    data = {"remote": f"s3://{BUCKET}/snapshots", "endpoint_url": bucket}
    (tmp_path / "gateway.yaml").write_text(
        yaml.safe_dump(configuration("http://127.0.0.1:9/v1", data=data))
    )
    settings = load_settings({**os.environ, **KEYS, "LLMOPS_HOME": str(tmp_path)})
    upgrade(settings.database_url)
    with open_installation(settings) as installation:
        made = freeze(installation, "flights", SINCE, UNTIL)
        kept = {path.name: path.read_bytes() for path in made.folder.iterdir()}
        assert len(names_in(bucket, "snapshots/files/md5/")) == len(kept) + 1  # and the folder
        shutil.rmtree(made.folder)
        shutil.rmtree(tmp_path / "data" / ".dvc")
        again = checkout(installation, made.id)
        assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == kept
        assert [one["id"] for one in listed(installation)] == [made.id]


def test_data_sets_of_passes(bucket: str, tmp_path: Path) -> None:
    script = StageScript(tmp_path)
    settings = replace(script.settings, environ={**script.settings.environ, **KEYS})
    plan = DataPlan(remote=f"s3://{BUCKET}/sets", endpoint_url=bucket)
    workspace = Workspace(settings, "extractor", plan)
    workspace.prepare(spec())
    workspace.reproduce("preprocess")
    workspace.reproduce("features")
    manifest = read_manifest(workspace.folder / "dataset")
    workspace.push()
    pushed = names_in(bucket, "sets/")
    workspace.push()
    assert names_in(bucket, "sets/") == pushed
    assert pushed
    shutil.rmtree(workspace.folder)
    assert read_manifest(workspace.checkout(manifest.dataset_id)) == manifest
