"""A part for tests: answers HTTP on PORT after DELAY seconds, and dies at `/die`.

Run as `scripted_server.py PORT DELAY CHILD`; where CHILD is not empty a child process is started
whose environment says nothing, and its pid is written to that file.
"""

import http.server
import os
import subprocess
import sys
import time
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    """Says the part's name."""

    def do_GET(self) -> None:
        if self.path == "/die":
            os._exit(3)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ.get("LLMOPS_PART", "").encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def main(port: str, delay: str, child: str) -> None:
    print("warming up", flush=True)
    if child:
        quiet = subprocess.Popen(["/bin/sleep", "300"], env={})
        Path(child).write_text(str(quiet.pid))
    time.sleep(float(delay))
    http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
