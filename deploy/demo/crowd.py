"""Many users at once: they come one after another, a bounded number are there at a time.

Every request is counted: what was sent is what was answered plus what failed. Nothing is tried
again, so a failure is seen as a user would see it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice

from deploy.demo.desk import AskFailed, Counter, Desk
from deploy.demo.stage import Show, Step
from deploy.demo.users import Opinion, SimulatedUser

REASONS_KEPT = 5
LABEL = "requests"


@dataclass(slots=True)
class Tally:
    """What a crowd did so far.

    Attributes:
        users: who came, whether or not they were answered.
        sent, answered, failed: requests; a request whose feedback was refused has failed.
        right: answers that were right by the users' rule.
        helpful, unhelpful, silent: what was said of the answers.
        corrected: corrections sent, among the unhelpful.
        reasons: of the first failures.
    """

    users: int = 0
    sent: int = 0
    answered: int = 0
    failed: int = 0
    right: int = 0
    helpful: int = 0
    unhelpful: int = 0
    silent: int = 0
    corrected: int = 0
    reasons: list[str] = field(default_factory=list)

    def take(self, opinion: Opinion) -> None:
        """Count one answered request."""
        self.answered += 1
        self.right += opinion.right
        self.silent += opinion.helpful is None
        self.helpful += opinion.helpful is True
        self.unhelpful += opinion.helpful is False
        self.corrected += opinion.correction is not None

    def fail(self, reason: str) -> None:
        """Count one failed request."""
        self.failed += 1
        if len(self.reasons) < REASONS_KEPT:
            self.reasons.append(reason)

    def add(self, other: "Tally") -> None:
        """Add another crowd's counts."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)
        del self.reasons[REASONS_KEPT:]

    def note(self) -> str:
        """The counts in a line."""
        return (
            f"{self.users} users · {self.helpful} helpful, {self.unhelpful} not, "
            f"{self.silent} silent · {self.corrected} corrected · {self.failed} failed"
        )


@dataclass(frozen=True, slots=True)
class Crowd:
    """Users of one run, in the order in which they come; a later crowd goes on where one ended."""

    counter: Counter
    arriving: Iterator[SimulatedUser]
    at_once: int
    poll_seconds: float = 1.0

    async def gather(self, users: int, show: Show, enough: asyncio.Event | None = None) -> Tally:
        """Let `users` more come, or fewer once `enough` is set; who came makes all its visits."""
        tally = Tally()
        coming = islice(self.arriving, users)

        async def chair(desk: Desk) -> None:
            while enough is None or not enough.is_set():
                user = next(coming, None)
                if user is None:
                    return
                tally.users += 1
                await _visits(desk, user, tally, lambda: show(_step(tally, users, enough)))

        async with Desk(self.counter, connections=self.at_once) as desk:
            await asyncio.gather(*(chair(desk) for _ in range(self.at_once)))
        return tally

    async def until(
        self,
        decided: Callable[[], Awaitable[bool]],
        *,
        users: int,
        show: Show,
        patience_seconds: float,
    ) -> Tally:
        """Let users come until `decided`, which is asked again and again, says so.

        After `users` of them nobody else comes, and `patience_seconds` are waited.
        """
        enough = asyncio.Event()

        async def watch() -> None:
            while True:
                if await decided():
                    enough.set()
                    return
                await asyncio.sleep(self.poll_seconds)

        watching = asyncio.create_task(watch())
        crowd = asyncio.create_task(self.gather(users, show, enough))
        try:
            await asyncio.wait({watching, crowd}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()  # if it failed, so do we, before anybody else comes
            tally = await crowd
            await asyncio.wait({watching}, timeout=patience_seconds)
            return tally
        finally:
            for task in (watching, crowd):
                task.cancel()
            await asyncio.gather(watching, crowd, return_exceptions=True)


async def _visits(desk: Desk, user: SimulatedUser, tally: Tally, tell: Callable[[], None]) -> None:
    for number in range(len(user.cases)):
        tally.sent += 1
        try:
            tally.take(await desk.visit(user, number))
        except AskFailed as error:
            tally.fail(str(error))
        tell()


def _step(tally: Tally, users: int, enough: asyncio.Event | None) -> Step:
    """Progress in users where their number is known beforehand, else a count without an end."""
    total = users if enough is None else None
    return Step(LABEL, tally.users if total else tally.answered, total, tally.note())
