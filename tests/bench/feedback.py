"""`python -m tests.bench.feedback`: time of one `POST /v1/feedback`, end to end (p50 <= 5 ms)."""

import argparse
import http.client
import sys
import time
from statistics import median, quantiles
from urllib.parse import urlsplit

import orjson

from tests.bench.contenders import GATEWAY, Target, running
from tests.bench.progress import Progress
from tests.bench.unary import request_body
from tests.bench.upstreams import running_upstreams, work_folder

GOAL_MS = 5


def post(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]
) -> http.client.HTTPResponse:
    """One POST, read to its end."""
    connection.request("POST", path, body, {"content-type": "application/json", **headers})
    answer = connection.getresponse()
    answer.read()
    return answer


def feedback_times_ms(target: Target, count: int) -> list[float]:
    """Send `count` pieces of feedback on one request over one connection; time of each, ms."""
    where = urlsplit(target.url).netloc
    connection = http.client.HTTPConnection(where, timeout=30)
    answer = post(connection, "/v1/chat/completions", request_body(target.model), target.headers)
    request_id = answer.getheader("x-request-id")
    times = []
    for number in range(count):
        value = {"request_id": request_id, "metric_name": "thumbs_up", "value": number % 2 == 0}
        body = orjson.dumps(value)
        started = time.perf_counter()
        answer = post(connection, "/v1/feedback", body, target.headers)
        times.append((time.perf_counter() - started) * 1000)
        if answer.status != 200:
            raise RuntimeError(f"POST /v1/feedback answered {answer.status}")
    connection.close()
    return times


def main() -> int:
    """Measure and print; 1 if the goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.feedback", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    count = parser.parse_args().count
    say = Progress(sys.stderr)
    with (
        work_folder() as folder,
        running_upstreams(folder) as upstreams,
        running((GATEWAY,), folder, upstreams, peers=None, say=say) as contenders,
    ):
        say(f"{count} pieces of feedback")
        times = feedback_times_ms(contenders[0].unary, count)
    p50, p99 = median(times), quantiles(times, n=100)[98]
    met = p50 <= GOAL_MS
    verdict = "met" if met else "MISSED"
    print(f"\nfeedback write: p50 {p50:.2f} ms, p99 {p99:.2f} ms (goal: p50 at most 5) {verdict}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
