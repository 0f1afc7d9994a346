"""KServe InferenceServices through the Kubernetes API: what we say of one, and how it stands.

We apply server-side and own only the fields that we send; who owns one of them already is not
overruled (409) unless we are told to. KServe's `status.observedGeneration` counts the changes of a
child, not of the InferenceService (kserve/kserve#6081), so it is compared with what it was before,
never with `metadata.generation`.
"""

import asyncio
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from pipelines.cluster import InferenceService
from pipelines.json_server import JsonServer, ServerRefused

API = "/apis/serving.kserve.io/v1beta1"
MANAGER = "llmops"
APPLY = "application/apply-patch+yaml"  # JSON is YAML
NOT_FOUND, CONFLICT = 404, 409
MODIFIED = "the object has been modified"
ATTEMPTS = 4
CANARY = "canaryTrafficPercent"
FAILED = ("BlockedByFailedLoad", "InvalidSpec")

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Served:
    """What an InferenceService is to serve.

    Attributes:
        version: of the registered model; None: the plain base model.
        uri: where its files lie.
        percent: share of the traffic, the rest stays with what was rolled out before; None: all.
    """

    version: str | None
    uri: str
    percent: int | None = None

    def __str__(self) -> str:
        share = "" if self.percent is None else f" for {self.percent} %"
        return f"version {self.version or 'base'}{share} ({self.uri})"


def manifest(name: str, namespace: str, plan: InferenceService, served: Served) -> Object:
    """All that we say of an InferenceService."""
    model: Object = {
        "modelFormat": {"name": plan.model_format},
        "protocolVersion": plan.protocol,
        "storageUri": served.uri,
    }
    if plan.runtime is not None:
        model["runtime"] = plan.runtime
    predictor: Object = {"model": model}
    if served.percent is not None:
        predictor[CANARY] = served.percent
    if plan.service_account is not None:
        predictor["serviceAccountName"] = plan.service_account
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": MANAGER},
        },
        "spec": {"predictor": predictor},
    }


class InferenceServices:
    """Those of one namespace. All methods raise what `JsonServer.call` raises."""

    def __init__(self, server: JsonServer, namespace: str, *, force: bool = False):
        self._server = server
        self._path = f"{API}/namespaces/{namespace}/inferenceservices"
        self._query = {"fieldManager": MANAGER, "force": "true" if force else "false"}

    async def find(self, name: str) -> Object | None:
        """The one of that name, if there is one."""
        try:
            return await self._server.call("GET", f"{self._path}/{name}")
        except ServerRefused as error:
            if error.status != NOT_FOUND:
                raise
            return None

    async def apply(self, wanted: Object) -> Object:
        """Make it say what we want; what it is then."""
        path = f"{self._path}/{wanted['metadata']['name']}"
        for attempt in range(ATTEMPTS):
            try:
                return await self._server.call(
                    "PATCH", path, wanted, query=self._query, content_type=APPLY
                )
            except ServerRefused as error:
                passing = error.status == CONFLICT and MODIFIED in str(error)
                if not passing or attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def said_of(live: Object | None, wanted: Object) -> Object:
    """What an InferenceService says now of all that `wanted` is about."""
    if live is None:
        return {}
    said = _projected(live, wanted)
    canary = live.get("spec", {}).get("predictor", {}).get(CANARY)
    if canary is not None:
        said.setdefault("spec", {}).setdefault("predictor", {})[CANARY] = canary
    return said


def uri_of(live: Object | None) -> str | None:
    """Where its files lie, as it says now."""
    model = _at(live or {}, "spec", "predictor", "model")
    uri: str | None = model.get("storageUri")
    return uri


def is_canary(live: Object) -> bool:
    """Whether part of its traffic stays with what was rolled out before."""
    return _at(live, "spec", "predictor").get(CANARY) is not None


def changes(live: Object | None, wanted: Object) -> Iterator[str]:
    """What applying `wanted` would change, as lines of a diff; none if nothing."""
    before, after = (
        yaml.safe_dump(one, sort_keys=True).splitlines() if one else []
        for one in (said_of(live, wanted), wanted)
    )
    yield from difflib.unified_diff(before, after, "in the cluster", "wanted", lineterm="")


@dataclass(frozen=True, slots=True)
class Standing:
    """How an InferenceService stands.

    Attributes:
        ready: it serves what was applied.
        failed: why it never will, if that is known.
        said: what it says, for people.
        revision: the newest revision; None where there are none (Standard mode).
    """

    ready: bool
    failed: str | None
    said: str
    revision: str | None


def standing(live: Object, before: Object | None) -> Standing:
    """How it stands with what was applied to `before`; None: it need not have changed since."""
    status = live.get("status") or {}
    predictor = _at(status, "components", "predictor")
    revision = predictor.get("latestCreatedRevision")
    conditions = {one["type"]: one for one in status.get("conditions") or []}
    ready = conditions.get("Ready", {})
    model = status.get("modelStatus") or {}
    state = model.get("transitionStatus") or "UpToDate"
    failure = (model.get("lastFailureInfo") or {}).get("message", "")
    told = ready.get("message") or ready.get("reason") or failure
    said = f"Ready is {ready.get('status', 'not there yet')}, {state}: {told}".removesuffix(": ")
    if before is not None and not _seen(live, before):
        return Standing(False, None, f"KServe has not taken it up yet ({said})", revision)
    failed = f"{state}: {failure or told}" if state in FAILED else None
    up = ready.get("status") == "True" and state == "UpToDate"
    settled = revision is None or predictor.get("latestReadyRevision") == revision
    return Standing(up and settled, failed, said, revision)


def _seen(live: Object, before: Object) -> bool:
    """Whether the status is of what was applied since `before`."""
    now, then = _revision(live), _revision(before)
    if uri_of(live) != uri_of(before) and now is not None:
        return now != then
    return _counter(live) != _counter(before)


def _revision(one: Object) -> str | None:
    found: str | None = _at(one, "status", "components", "predictor").get("latestCreatedRevision")
    return found


def _counter(one: Object) -> int | None:
    found: int | None = _at(one, "status").get("observedGeneration")
    return found


def _projected(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> Object:
    found: Object = {}
    for name, value in wanted.items():
        if name in live:
            nested = isinstance(value, dict) and isinstance(live[name], dict)
            found[name] = _projected(live[name], value) if nested else live[name]
    return found


def _at(one: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        one = one.get(name) or {}
    return one
