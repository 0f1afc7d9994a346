"""`python -m tests.bench.memory`: resident memory of one worker.

Two figures: after each tenth of 100,000 unary requests (it must stay flat, and within 160 MB), and
what one 5 MB stream to a slow reader costs (at most 256 KiB).
"""

import argparse
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from tests.bench.contenders import GATEWAY, Contender, Target, running
from tests.bench.gateway_home import BIG_STREAM
from tests.bench.progress import Progress
from tests.bench.stream_client import DONE, Request, stream_request
from tests.bench.unary import ask_once, run_wrk
from tests.bench.upstreams import running_upstreams, work_folder

MOST_MB = 160
FLAT_MB = 2
MOST_STREAM_KIB = 256
READERS = 32
WATCHED_SECONDS = 6
SMALL_BUFFER = 16 * 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """What was measured.

    Attributes:
        samples_mb: resident memory after each step of the load, MB.
        stream_kib: what one slow stream added at most, KiB.
    """

    requests: int
    samples_mb: list[float]
    stream_kib: float

    @property
    def growth_mb(self) -> float:
        """Over the second half of the load, when everything that fills up once is full."""
        return self.samples_mb[-1] - self.samples_mb[len(self.samples_mb) // 2 - 1]

    def lines(self) -> list[str]:
        """One line a goal."""
        highest = max(self.samples_mb)
        return [
            _line("resident memory of a worker, MB", highest, MOST_MB),
            _line(
                f"its growth over the second half of {self.requests:,} requests, MB",
                self.growth_mb,
                FLAT_MB,
            ),
            _line("a 5 MB stream to a slow reader, KiB", self.stream_kib, MOST_STREAM_KIB),
        ]

    def met(self) -> bool:
        """Whether every goal is met."""
        flat = self.growth_mb <= FLAT_MB and max(self.samples_mb) <= MOST_MB
        return flat and self.stream_kib <= MOST_STREAM_KIB


def measure(requests: int, say: Callable[[str], None]) -> Memory:
    """Start one worker, load it, and watch its memory."""
    with (
        work_folder() as folder,
        running_upstreams(folder) as upstreams,
        running((GATEWAY,), folder, upstreams, peers=None, say=say) as contenders,
    ):
        gateway = contenders[0]
        samples = sample_under_load(gateway, requests, say)
        stream_kib = slow_stream_kib(gateway.stream, say)
    return Memory(requests, samples, stream_kib)


def sample_under_load(gateway: Contender, requests: int, say: Callable[[str], None]) -> list[float]:
    """Resident memory after each tenth of so many unary requests."""
    ask_once(gateway.unary)
    samples: list[float] = []
    done = 0.0
    while done < requests:
        run = run_wrk(gateway.unary, connections=32, seconds=1)
        done += run.requests_per_second
        if done >= requests * (len(samples) + 1) / 10:
            samples.append(gateway.unary.resident_mb())
            say(f"{done:,.0f} requests: {samples[-1]:.1f} MB")
    return samples


def slow_stream_kib(target: Target, say: Callable[[str], None]) -> float:
    """What one big stream to a reader of a few KB a second adds at most, KiB."""
    request = stream_request(target.chat_url, BIG_STREAM, target.headers)
    # The first stream pays for what every later one shares.
    _read_whole(request)
    before = target.resident_mb()
    highest = _slow_readers(request, target)
    say(f"{READERS} slow readers: {before:.1f} MB before, {highest:.1f} MB at most")
    return max(0.0, highest - before) * 1024 / READERS


def _read_whole(request: Request) -> None:
    """Read one stream to its end, as fast as it comes."""
    with socket.create_connection((request.host, request.port), timeout=10) as reader:
        reader.sendall(request.head_and_body)
        tail = b""
        while DONE not in tail:
            data = reader.recv(65536)
            if not data:
                raise ConnectionError("the gateway closed the stream before its end")
            tail = tail[-len(DONE) :] + data


def _slow_readers(request: Request, target: Target) -> float:
    """Open the streams and read a little of each now and then; the highest memory seen, MB."""
    highest = 0.0
    with ExitStack() as stack:
        readers = []
        for _ in range(READERS):
            reader = stack.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            reader.settimeout(10)
            reader.connect((request.host, request.port))
            reader.sendall(request.head_and_body)
            readers.append(reader)
        end = time.monotonic() + WATCHED_SECONDS
        while time.monotonic() < end:
            for reader in readers:
                if not reader.recv(1024):
                    raise ConnectionError("the gateway closed a slow reader's stream")
            highest = max(highest, target.resident_mb())
            time.sleep(0.2)
    return highest


def _line(what: str, value: float, goal: float) -> str:
    return f"{what}: {value:.1f} (goal: at most {goal}) {'met' if value <= goal else 'MISSED'}"


def main() -> int:
    """Measure and print; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.memory", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    memory = measure(parser.parse_args().requests, Progress(sys.stderr))
    print("", *memory.lines(), sep="\n")
    return 0 if memory.met() else 1


if __name__ == "__main__":
    sys.exit(main())
