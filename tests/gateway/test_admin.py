"""The admin API: its one credential, LiteLLM's names, and OpenAI's error shape for all the rest."""

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.admin import create_admin
from gateway.admin_guard import BODY_BYTES, PUBLIC
from gateway.configuration import Configuration
from gateway.key_ring import KeyRing
from gateway.settings import load_settings
from tests.admin_process import AdminProcess


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminProcess]:
    with AdminProcess(tmp_path_factory.mktemp("admin") / "home") as process:
        yield process


def routes() -> list[tuple[str, str]]:
    """Every method and path of the application, found by looking at it."""
    settings = load_settings({"LLMOPS_ADMIN_KEY": "x", "LLMOPS_KEY_SECRET": "y"})
    app = create_admin(settings, Configuration(upstreams={}, models={}))
    paths = app.openapi()["paths"]
    described = [(method.upper(), path) for path in paths for method in paths[path]]
    return sorted([*described, ("GET", "/openapi.json")])


def shaped(body: Any) -> dict[str, Any]:
    """The error in a body of OpenAI's shape."""
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    assert error["message"]
    return error


@pytest.mark.parametrize(("method", "path"), routes())
def test_no_route_without_the_credential(admin: AdminProcess, method: str, path: str) -> None:
    if path in PUBLIC:
        assert admin.request(method, path, headers=[])[0] == 200
        return
    bodies = set()
    for given in ("", "Bearer", "Bearer ", "Bearer wrong", f"Basic {admin.credential}", "\x80"):
        headers = [("authorization", given)] if given else []
        status, body = admin.request(method, path, b"{}", headers)
        assert status == 401
        bodies.add(orjson.dumps(body))
    assert len(bodies) == 1, "what is wrong with a credential must not show"
    assert shaped(orjson.loads(bodies.pop()))["code"] == "invalid_api_key"


def test_there_are_routes_and_unknown_ones_are_behind_the_guard(admin: AdminProcess) -> None:
    assert len(routes()) > 15
    assert admin.request("GET", "/nothing", headers=[])[0] == 401
    assert admin.request("GET", "/health/../key/list", headers=[])[0] == 401
    assert admin.request("GET", "/health/live/", headers=[])[0] == 401


def test_a_virtual_key_is_no_admin(admin: AdminProcess) -> None:
    _, made = admin.post("/key/generate", {})
    headers = [("authorization", f"Bearer {made['key']}")]
    assert admin.request("GET", "/key/list", headers=headers)[0] == 401


def test_two_credentials_are_one_too_many(admin: AdminProcess) -> None:
    both = [("authorization", f"Bearer {admin.credential}")] * 2
    status, body = admin.request("GET", "/key/list", headers=both)
    assert status == 400
    assert "Authorization" in shaped(body)["message"]


def test_the_credential_is_in_a_file_of_its_owner(admin: AdminProcess) -> None:
    path = admin.home / "secrets" / "admin.secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == admin.credential
    assert admin.credential not in admin.output()


def test_the_life_of_a_key(admin: AdminProcess) -> None:
    given = {
        "key_alias": "app", "models": ["m1"], "duration": "30d", "user_id": "anna",
        "metadata": {"purpose": "chat"}, "bodies": "redact", "unknown_fields": "reject",
        "aliases": {}, "max_budget": None, "send_invite_email": False, "reason": "new app",
    }  # fmt: skip
    status, made = admin.post("/key/generate", given)
    assert status == 200
    key, token = made["key"], made["token"]
    assert key.startswith("sk-")
    assert (made["key_alias"], made["models"], made["user_id"]) == ("app", ["m1"], "anna")
    assert (made["bodies"], made["unknown_fields"]) == ("redact", "reject")
    assert made["expires"] > made["created_at"]
    for name in (key, token, made["key_id"]):
        status, info = admin.get(f"/key/info?key={name}")
        assert (status, info["key"]) == (200, token)
        assert info["info"]["key"] is None, "the plaintext is shown once"
        assert info["info"]["key_id"] == made["key_id"]
    assert admin.post("/key/block", {"key": token})[1]["blocked"] is True
    assert admin.post("/key/unblock", {"key": key})[1]["blocked"] is False
    changed = admin.post("/key/update", {"key": key, "models": [], "duration": "-1"})[1]
    assert (changed["models"], changed["expires"], changed["key_alias"]) == ([], None, "app")
    kept = admin.post("/key/update", {"key": key, "key_alias": None, "duration": None})[1]
    assert kept["key_alias"] == "app"
    found = admin.get("/key/list?key_alias=app&return_full_object=true")[1]
    assert [key["key_id"] for key in found["keys"]] == [made["key_id"]]
    assert admin.get("/key/list?key_alias=app")[1]["keys"] == [token]
    assert admin.post("/key/delete", {"keys": [key, key]})[1] == {"deleted_keys": [token]}
    assert admin.post("/key/delete", {"keys": [key]})[0] == 404
    assert admin.post("/key/unblock", {"key": key})[0] == 404
    assert admin.get(f"/key/info?key={key}")[1]["info"]["deleted_at"]
    rows = admin.get(f"/audit?subject=key:{made['key_id']}")[1]["rows"]
    assert [row["action"] for row in rows][::-1] == [
        "key.generate", "key.block", "key.unblock", "key.update", "key.delete",
    ]  # fmt: skip
    assert rows[-1]["reason"] == "new app"
    assert key not in orjson.dumps(rows).decode()
    assert token not in orjson.dumps(rows).decode()


def test_deleting_several_keys_is_all_or_nothing(admin: AdminProcess) -> None:
    key = admin.post("/key/generate", {})[1]["key"]
    assert admin.post("/key/delete", {"keys": [key, "sk-" + "0" * 43]})[0] == 404
    assert admin.get(f"/key/info?key={key}")[1]["info"]["deleted_at"] is None


def test_the_life_of_a_team(admin: AdminProcess) -> None:
    made = admin.post("/team/new", {"team_alias": "blue", "tenant": "acme", "models": ["m1"]})[1]
    team = made["team_id"]
    key = admin.post("/key/generate", {"team_id": team})[1]
    assert key["tenant"] == "acme"
    info = admin.get(f"/team/info?team_id={team}")[1]
    assert [one["key_id"] for one in info["keys"]] == [key["key_id"]]
    updated = admin.post("/team/update", {"team_id": team, "blocked": True})[1]
    assert updated["data"]["blocked"] is True
    assert [one["team_id"] for one in admin.get("/team/list?tenant=acme")[1]] == [team]
    assert admin.post("/team/delete", {"team_ids": [team]})[1] == {"deleted_teams": [team]}
    assert admin.get(f"/key/info?key={key['key']}")[1]["info"]["deleted_at"]
    assert admin.get("/team/list?tenant=acme")[1] == []


def test_a_change_is_seen_by_the_workers(admin: AdminProcess) -> None:
    from gateway.database import open_database

    database = open_database(admin.settings.database_url)
    ring = KeyRing(database, admin.settings.key_digest_secret())
    key = admin.post("/key/generate", {})[1]["key"]
    ring.load()
    assert ring.find(key) is not None
    admin.post("/key/delete", {"keys": [key]})
    ring.load()
    assert ring.find(key) is None
    database.close()


def test_who_did_it_is_told_to_the_audit_trail(admin: AdminProcess) -> None:
    for given, actor in (("anna", "admin:anna"), ("", "admin"), ("\x80", "admin")):
        headers = [("authorization", f"Bearer {admin.credential}"), ("litellm-changed-by", given)]
        status, made = admin.request("POST", "/key/generate", b"{}", headers)
        assert status == 200
        rows = admin.get(f"/audit?subject=key:{made['key_id']}")[1]["rows"]
        assert rows[0]["actor"] == actor


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/key/generate", {"max_budget": 5}, None),
        ("/key/generate", {"aliases": {"a": "b"}}, None),
        ("/key/generate", {"no_such": 1}, "no_such"),
        ("/key/generate", {"models": "m"}, "models"),
        ("/key/generate", {"models": [1]}, "models.0"),
        ("/key/generate", {"duration": "soon"}, "duration"),
        ("/key/generate", {"bodies": "none"}, "bodies"),
        ("/key/generate", {"key_alias": "\x00"}, "alias"),
        ("/key/generate", {"metadata": {"a": "x" * 20000}}, "metadata"),
        ("/key/generate", {"blocked": "true"}, "blocked"),
        ("/key/generate", {"reason": "\x00"}, "reason"),
        ("/key/generate", [], None),
        ("/key/update", {}, "key"),
        ("/key/delete", {"keys": []}, "keys"),
        ("/team/new", {"members_with_roles": [{"role": "admin"}]}, None),
        ("/team/new", {"team_id": "x" * 129}, "team_id"),
    ],
)
def test_wrong_bodies_are_400_and_named(
    admin: AdminProcess, path: str, body: Any, param: str | None
) -> None:
    status, answer = admin.post(path, body)
    assert status == 400
    error = shaped(answer)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    if param is None and isinstance(body, dict):
        assert next(iter(body)) in error["message"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff", b'"\\ud800"', b"nul\x00", b"[" * 100_000, b'{"a": NaN}', b'{"metadata": ', b""],
)
def test_what_is_not_json_is_400(admin: AdminProcess, body: bytes) -> None:
    status, answer = admin.request("POST", "/key/generate", body)
    assert status == 400
    shaped(answer)


def test_sizes_paths_and_methods(admin: AdminProcess) -> None:
    status, answer = admin.request("POST", "/key/generate", b" " * (BODY_BYTES + 1))
    assert (status, shaped(answer)["code"]) == (413, "request_too_large")
    status, answer = admin.get("/no/such")
    assert (status, shaped(answer)["code"]) == (404, "not_found")
    status, answer = admin.request("DELETE", "/key/generate")
    assert (status, shaped(answer)["code"]) == (405, "method_not_allowed")
    for query in ("size=0", "size=x", "page=-1", "no_such=1", "tenant=%00", "page=1e400"):
        status, answer = admin.get(f"/key/list?{query}")
        assert status == 400
        shaped(answer)
    for path in ("/key/info?key=%00", "/key/info?key=%ED%A0%80", "/team/info?team_id=%00"):
        assert admin.get(path)[0] == 404
    assert admin.get("/key/info")[0] == 400


def test_metrics_are_prometheus_text(admin: AdminProcess) -> None:
    status, body = admin.get("/metrics")
    assert status == 200
    assert isinstance(body, bytes)


def test_unknown_requests_and_ids(admin: AdminProcess) -> None:
    for path in ("/logs/nothing", "/lineage/nothing", "/lineage/a/b", "/logs/%00"):
        status, answer = admin.get(path)
        assert status == 404
        shaped(answer)


def test_costs_of_an_empty_log(admin: AdminProcess) -> None:
    status, body = admin.get("/costs?by=team&since=7d")
    assert (status, body["lines"], body["total"]["cost_usd"]) == (200, [], "0")
    for query, param in (("by=shoe", "by"), ("since=soon", "since")):
        status, body = admin.get(f"/costs?{query}")
        assert (status, shaped(body)["param"]) == (400, param)


def test_lineage_of_a_key_and_its_team(admin: AdminProcess) -> None:
    team = admin.post("/team/new", {"team_alias": "green"})[1]["team_id"]
    key = admin.post("/key/generate", {"team_id": team})[1]
    found = admin.get(f"/lineage/{key['key_id']}")[1]
    assert found["starts"] == [f"key:{key['key_id']}"]
    assert {
        "effect": f"key:{key['key_id']}",
        "relation": "belongs to",
        "cause": f"team:{team}",
    } in (found["edges"])
    assert key["token"] not in orjson.dumps(found).decode()


def test_a_broken_database_is_503(tmp_path: Path) -> None:
    with AdminProcess(tmp_path / "home") as admin:
        with sqlite3.connect(admin.home / "state.db") as connection:
            connection.execute("ALTER TABLE state_version RENAME TO gone")
            connection.execute("ALTER TABLE virtual_key RENAME TO gone_too")
        for path in ("/key/list", "/health/ready"):
            status, answer = admin.get(path)
            assert status == 503
            assert "gone" not in shaped(answer)["message"]
        assert admin.get("/health/live")[0] == 200
