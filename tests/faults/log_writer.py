"""A process that writes requests to a spool and says which it has acknowledged.

Run as `python -m tests.faults.log_writer SPOOL COUNT SEED`. Prints the id of each request after its
record is written, as the gateway answers its client then; every fifth one is a stream in a part.
"""

import asyncio
import random
import sys
import time
from pathlib import Path

from gateway.configuration import Log
from gateway.spool import Spool
from tests.spooled_requests import record

CONCURRENT = 16
PACE_SECONDS = 0.03  # after each 50 requests


async def write(spool: Spool, count: int, rng: random.Random) -> None:
    """`count` requests, some under way at once."""
    under_way = []
    for number in range(count):
        one = record(ts=time.time_ns() // 1000, stream=number % 5 == 0)
        spool.begin(one)
        under_way.append((number, one))
        if len(under_way) < CONCURRENT:
            continue
        number, one = under_way.pop(rng.randrange(CONCURRENT))
        body = b'{"n":%d}' % number
        if one.stream:
            part = spool.open_part(one.request_id)
            part.append(body)
            part.close()
            one.response_part = one.request_id
            body = b""
        spool.finish(one, b"q" * rng.randrange(300), body)
        print(one.request_id)
        if number % 50 == 0:
            sys.stdout.flush()
            await asyncio.sleep(PACE_SECONDS)
    sys.stdout.flush()


async def main() -> None:
    """Write, with the spool's own task beside it, until the count is reached or a kill comes."""
    folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    spool = Spool(folder, Log(segment_bytes=128 * 1024, segment_seconds=0.2))
    keeper = asyncio.create_task(spool.run())
    await write(spool, count, random.Random(seed))
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    spool.close()


if __name__ == "__main__":
    asyncio.run(main())
