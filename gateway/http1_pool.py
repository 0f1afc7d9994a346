"""The connections to one upstream: at most so many, the one used last first."""

import asyncio
from collections import deque

from gateway.configuration import Timeouts
from gateway.errors import UpstreamBroken, UpstreamTimeout
from gateway.http1_connection import Http1Connection

# Below uvicorn's and vLLM's own 5 s, so that a connection is not reused while it is being closed.
KEEP_ALIVE_SECONDS = 4.0
READ_BYTES = 16 * 1024


class Pool:
    """Connections to `host:port`, `most` at a time; who comes later waits its turn."""

    def __init__(self, host: str, port: int):
        self.most = 1
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.idle: list[Http1Connection] = []
        self.open: set[Http1Connection] = set()
        self._host, self._port = host, port
        self._opening = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self, timeouts: Timeouts) -> Http1Connection:
        """An idle connection, or a new one, when it is this caller's turn."""
        while True:
            while self.idle:
                connection = self.idle.pop()
                if not connection.closed and not connection.transport.is_closing():
                    return connection
            if len(self.open) + self._opening < self.most:
                return await self._connect(timeouts.connect)
            try:
                async with asyncio.timeout(timeouts.total):
                    await self._turn()
            except TimeoutError as error:
                message = "No connection to the upstream became free in time."
                raise UpstreamTimeout(message) from error

    def keep(self, connection: Http1Connection) -> None:
        """Take a connection back for the next call."""
        self.idle.append(connection)
        self._next()

    def drop(self, connection: Http1Connection) -> None:
        """Forget a connection that is closed, or about to be."""
        if connection in self.open:
            self.open.discard(connection)
            if connection in self.idle:
                self.idle.remove(connection)
            self._next()

    def sweep(self, now: float) -> None:
        """Fail what is too late, close what has been idle for too long."""
        for connection in list(self.open):
            if connection.busy:
                connection.expire(now)
            elif now - connection.used > KEEP_ALIVE_SECONDS:
                self.drop(connection)
                connection.transport.close()

    def close(self) -> None:
        """Close every connection at once."""
        for connection in list(self.open):
            connection.transport.abort()

    async def _turn(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._next()  # the turn was given to one who no longer wants it
            raise

    async def _connect(self, timeout: float) -> Http1Connection:
        loop = asyncio.get_running_loop()
        self._opening += 1
        made = False
        try:
            async with asyncio.timeout(timeout):
                _, connection = await loop.create_connection(
                    lambda: Http1Connection(self, loop), self._host, self._port
                )
            made = True
        except TimeoutError as error:
            raise UpstreamTimeout("The upstream did not answer in time.") from error
        except OSError as error:
            raise UpstreamBroken("The upstream could not be reached.") from error
        finally:
            self._opening -= 1
            if not made:
                self._next()
        self.open.add(connection)
        return connection

    def _next(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
