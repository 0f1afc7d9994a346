"""Time as the schedule sees it. A clock of speed 3600 lives through an hour every second."""

import asyncio
import time
from datetime import UTC, datetime

LOOK_SECONDS = 1.0  # real seconds between looks, so that a clock that is set is noticed
BACK_SECONDS = 60.0  # a clock that goes back by less is corrected, not set


class Clock:
    """The machine's time, or time that runs `speed` times as fast from now on."""

    def __init__(self, speed: float = 1.0):
        if speed <= 0:
            raise ValueError(f"a speed of {speed}: more than 0 is wanted")
        self.speed = speed
        self._began = time.time()

    def now(self) -> datetime:
        """The current moment, UTC."""
        passed = time.time() - self._began
        return datetime.fromtimestamp(self._began + passed * self.speed, UTC)

    def real_seconds(self, seconds: float) -> float:
        """How long a span of this clock takes."""
        return seconds / self.speed

    async def wait_until(self, moment: datetime) -> None:
        """Return when it is `moment`, or later; or when the clock was set back meanwhile.

        Lets others go on at least once, even if it is late already.
        """
        latest = self.now()
        while True:
            left = max((moment - latest).total_seconds(), 0.0)
            await asyncio.sleep(min(self.real_seconds(left), LOOK_SECONDS))
            moment_now = self.now()
            if moment_now >= moment or (latest - moment_now).total_seconds() > BACK_SECONDS:
                return
            latest = max(latest, moment_now)
