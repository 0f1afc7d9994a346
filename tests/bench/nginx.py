"""nginx, with one worker: as an upstream whose answer costs next to nothing, and as a proxy."""

import os
import shutil
from pathlib import Path

import orjson

from tests.bench.children import Child

CONTENT = "w0 w1 w2 w3 w4 w5 w6 w7 "
ANSWER = orjson.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": CONTENT},
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17},
    }
).decode()


class MissingTool(RuntimeError):
    """A program that the benchmark needs is not installed; the message says how to get it."""


def find_tool(name: str) -> str:
    """Path of a program; raises MissingTool."""
    found = shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
    if found is None:
        raise MissingTool(f"{name} is not installed; run: apt-get install -y {name}")
    return found


def unary_server(port: int) -> str:
    """A server that answers everything with one constant chat completion."""
    return f"""
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    default_type application/json;
    location / {{ return 200 '{ANSWER}'; }}
  }}"""


def proxy_server(name: str, port: int, upstream: str, *, buffering: str) -> str:
    """A server that passes everything on over kept connections."""
    return f"""
  upstream {name} {{
    server {upstream.removeprefix("http://")};
    keepalive 64;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://{name};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering {buffering};
    }}
  }}"""


def start_nginx(name: str, servers: str, *, folder: Path) -> Child:
    """Start nginx with these servers; everything it writes goes under `folder`."""
    home = folder / name
    home.mkdir()
    user = "user root;" if os.geteuid() == 0 else ""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"  {kind}_temp_path {home}/{kind};" for kind in kinds)
    path = home / "nginx.conf"
    path.write_text(
        f"""{user}
worker_processes 1;
daemon off;
pid {home}/pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
{temporary}
{servers}
}}
"""
    )
    return Child(name, [find_tool("nginx"), "-e", "stderr", "-c", str(path)], folder=folder)
