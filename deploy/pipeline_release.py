"""Releases a pipeline to Kubeflow: its compiled form goes up as a version, and a run is started.

What is deployed is the pipeline, not a model: the run trains, judges and registers where the data
is. A version is named after the commit and the digest of the compiled form, and a run after the
version and the spec's content, so that the same release again uploads nothing and starts nothing.
A run that failed or was cancelled is not in the way: the next one has its number in its name.

    python -m deploy.pipeline_release flight-delay --host https://kubeflow.example/pipeline

The token, if the server wants one, is in the environment variable `KFP_TOKEN`.
"""

import argparse
import hashlib
import json
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gateway.configuration import ConfigurationError
from gateway.settings import SettingsError, load_settings
from pipelines.code_version import compiled, pipeline_version
from pipelines.spec import Spec, load_spec

if TYPE_CHECKING:
    from kfp import Client

EXPERIMENT, TOKEN = "llmops", "KFP_TOKEN"
HEALTH, SECONDS = "/apis/v2beta1/healthz", 10
PAGE = 2
SPEC_CHARACTERS = 8
ENDED_IN_VAIN = ("FAILED", "CANCELING", "CANCELED")
NAMESPACE = "kubeflow"


class ReleaseFailed(RuntimeError):
    """Kubeflow refused it, or is away; the message says what it said."""


@dataclass(frozen=True, slots=True)
class Release:
    """What is there now. `uploaded` and `started` say what was not there before."""

    version: str
    version_id: str
    run_id: str | None
    uploaded: bool
    started: bool


def release(
    client: "Client", ir: Path, version: str, arguments: Mapping[str, Any], run: str | None
) -> Release:
    """Let Kubeflow have the compiled form `ir` as `version`, and a run named `run` (None: none).

    After runs that ended in vain it is named `run, attempt 2` and so on.

    Raises: ReleaseFailed.
    """
    import kfp_server_api
    import urllib3

    try:
        pipeline_id = _pipeline(client, ir)
        version_id, uploaded = _version(client, pipeline_id, ir, version)
        run_id, started = None, False
        if run is not None:
            run_id, started = _run(client, (pipeline_id, version_id), run, arguments)
    except kfp_server_api.ApiException as error:
        said = error.body or error.reason
        raise ReleaseFailed(f"Kubeflow refused {version}: {error.status} {said}") from error
    except urllib3.exceptions.HTTPError as error:
        raise ReleaseFailed(f"Kubeflow is away: {error}") from error
    return Release(version, version_id, run_id, uploaded, started)


def _pipeline(client: "Client", ir: Path) -> str:
    """Id of the pipeline that the compiled form names; made if there is none."""
    info = next(yaml.safe_load_all(ir.read_text()))["pipelineInfo"]
    found = client.get_pipeline_id(info["name"])
    if found is None:
        made = client.api_models.V2beta1Pipeline(
            display_name=info["name"], description=info.get("description", "")
        )
        found = client.pipelines.pipeline_service_create_pipeline(pipeline=made).pipeline_id
    return str(found)


def _version(client: "Client", pipeline_id: str, ir: Path, name: str) -> tuple[str, bool]:
    listed = client.list_pipeline_versions(pipeline_id, page_size=PAGE, filter=_named(name))
    if listed.pipeline_versions:
        return str(listed.pipeline_versions[0].pipeline_version_id), False
    made = client.upload_pipeline_version(str(ir), name, pipeline_id=pipeline_id)
    return str(made.pipeline_version_id), True


def _run(
    client: "Client", pipeline: tuple[str, str], name: str, arguments: Mapping[str, Any]
) -> tuple[str, bool]:
    experiment = client.create_experiment(EXPERIMENT).experiment_id  # or the one there is
    title = name
    for attempt in count(2):
        listed = client.list_runs(page_size=PAGE, experiment_id=experiment, filter=_named(title))
        if not listed.runs:
            break
        for one in listed.runs:
            if one.state not in ENDED_IN_VAIN:
                return str(one.run_id), False
        title = f"{name}, attempt {attempt}"
    pipeline_id, version_id = pipeline
    made = client.run_pipeline(
        experiment, title, params=dict(arguments), pipeline_id=pipeline_id, version_id=version_id
    )
    return str(made.run_id), True


def _run_name(spec: Spec, version: str) -> str:
    digest = hashlib.sha256(spec.text().encode()).hexdigest()[:SPEC_CHARACTERS]
    return f"{spec.name} {version} {digest}"


def _named(name: str) -> str:
    """Kubeflow's filter for one display name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def main(argv: Sequence[str] | None = None) -> int:
    """Release the pipeline of a spec's kind; 1 if that failed."""
    parser = argparse.ArgumentParser(prog="python -m deploy.pipeline_release", description=__doc__)
    parser.add_argument("spec", type=Path, help="a packaged spec's name, or a file")
    parser.add_argument("--host", required=True, help="address of Kubeflow Pipelines")
    parser.add_argument("--namespace", default=NAMESPACE)
    parser.add_argument("--no-run", action="store_true", help="upload only")
    given = parser.parse_args(argv)
    try:
        spec = load_spec(given.spec)
        ir = compiled(spec.kind)
        version = pipeline_version(spec.kind)
        run = None if given.no_run else _run_name(spec, version)
        client = _client(given.host, given.namespace)
        done = release(client, ir, version, {"spec": spec.text()}, run)
    except (ConfigurationError, SettingsError, ReleaseFailed, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    uploaded = "uploaded" if done.uploaded else "was there"
    started = "started" if done.started else "was there"
    sys.stdout.write(f"pipeline version {done.version} ({done.version_id}): {uploaded}\n")
    if done.run_id is not None:
        sys.stdout.write(f"run {done.run_id}: {started}\n")
    return 0


def _client(host: str, namespace: str) -> "Client":
    """A client. The server is asked first: Kubeflow's own client would ask for half a minute."""
    from kfp import Client

    token = load_settings().environ.get(TOKEN)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    asked = urllib.request.Request(f"{host.rstrip('/')}{HEALTH}", headers=headers)
    try:
        urllib.request.urlopen(asked, timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        raise ReleaseFailed(f"{host}: Kubeflow refused: {error.code} {error.reason}") from error
    except OSError as error:
        raise ReleaseFailed(f"{host}: Kubeflow is away: {error}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return Client(host=host, namespace=namespace, existing_token=token)


if __name__ == "__main__":
    sys.exit(main())
