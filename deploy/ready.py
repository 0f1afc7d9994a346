"""What `llmops up` prints at its end: addresses, the key, and a line that works as it is."""

import json
import shlex
import shutil
import socket
import sys
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from deploy.parts import Part
from gateway.configuration import WILDCARD, Configuration
from gateway.settings import Settings

ASK_SECONDS = 1.0
KEY_FILE = "secrets/dev.key"
NO_MODEL = "MODEL"
NEXT = ("status", "logs tail", "costs", "down")
QUESTION = "What is the capital of France?"


def print_ready(
    console: Console, settings: Settings, configuration: Configuration, parts: list[Part], key: str
) -> None:
    """Print it, without colors inside the lines that are to be copied."""
    urls = {part.name: part.url for part in parts if part.url}
    gateway = urls["gateway"] or ""
    model = chat_model(configuration, gateway, key)
    lines = [
        "",
        *(f"{name:<12}{url}" for name, url in urls.items()),
        f"{'API key':<12}{key}",
        f"{'':<12}(kept in {settings.home / KEY_FILE}; admin key: {settings.home / 'secrets'})",
        "",
        "Try it:",
        curl(gateway, key, model),
        "",
        f"Then: {', '.join(f'{command()} {what}' for what in NEXT)}",
    ]
    if model == NO_MODEL:
        lines.insert(1, "The upstream does not list its models: is its URL right, with its /v1?")
    elif not listens(url := upstream_of(configuration, model)):
        lines.insert(1, f"Nothing listens at {url}: chats get 503 until something does.")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def command() -> str:
    """How this command is called here: its name, or its path where the name leads nowhere."""
    if shutil.which("llmops"):
        return "llmops"
    beside = Path(sys.executable).with_name("llmops")
    here = Path.cwd()
    return str(beside.relative_to(here)) if beside.is_relative_to(here) else str(beside)


def curl(gateway: str, key: str, model: str) -> str:
    """A chat completion as one line for the shell."""
    message = {"role": "user", "content": QUESTION}
    body = json.dumps({"model": model, "messages": [message], "max_tokens": 24, "temperature": 0})
    words = ["curl", f"{gateway}/chat/completions", "-H", f"Authorization: Bearer {key}"]
    return shlex.join([*words, "-H", "Content-Type: application/json", "-d", body])


def chat_model(configuration: Configuration, gateway: str, key: str) -> str:
    """A model that can chat: the first that is configured, else the first that is served."""
    vectors = configuration.embeddings.models if configuration.embeddings else {}
    named = [
        name
        for name, model in configuration.models.items()
        if name != WILDCARD
        and name not in vectors
        and configuration.upstreams[model.upstream].kind != "kserve"
    ]
    return named[0] if named else first_served(gateway, key) or NO_MODEL


def upstream_of(configuration: Configuration, model: str) -> str:
    """Address of what answers a model."""
    named = configuration.models.get(model) or configuration.models[WILDCARD]
    return configuration.upstreams[named.upstream].url


def listens(url: str) -> bool:
    """Whether something takes connections at an address."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), ASK_SECONDS):
            return True
    except OSError:
        return False


def first_served(gateway: str, key: str) -> str | None:
    """The first model that the gateway lists; None if it lists none."""
    parts = urlsplit(f"{gateway}/models")
    connection = HTTPConnection(parts.hostname or "", parts.port or 80, timeout=ASK_SECONDS)
    try:
        connection.request("GET", parts.path, headers={"Authorization": f"Bearer {key}"})
        listed = json.loads(connection.getresponse().read())["data"]
        return next((str(item["id"]) for item in listed if item["id"] != WILDCARD), None)
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()
