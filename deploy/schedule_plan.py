"""The `schedule` section of the configuration: which commands run by themselves, and how often."""

from datetime import UTC, datetime, timedelta

from pydantic import Field, field_validator

from gateway.section import Name, Section, Span


class Job(Section):
    """A command of `llmops` that runs at every whole multiple of its interval (UTC).

    Attributes:
        every: interval, such as `1h`; whole seconds.
        command: arguments of `llmops`, such as `[drift, check]`.
        timeout: a run that takes longer is ended.
    """

    every: Span
    command: tuple[str, ...] = Field(min_length=1)
    timeout: Span = 6 * 3600.0

    @field_validator("every")
    @classmethod
    def _whole(cls, every: float) -> float:
        if every < 1 or every != int(every):  # multiples of 1.1 are not exact
            raise ValueError(f"{every:g} s: whole seconds are wanted, 1s or more")
        return every

    def moment(self, at: datetime) -> datetime:
        """The latest moment, up to `at`, that a run is due."""
        return datetime.fromtimestamp(at.timestamp() // self.every * self.every, UTC)

    def after(self, moment: datetime) -> datetime:
        """The first one after `moment`."""
        return self.moment(moment) + timedelta(seconds=self.every)

    def missed(self, before: datetime, due: datetime) -> int:
        """How many lie between the two."""
        return max(round((due - before).total_seconds() / self.every) - 1, 0)


class SchedulePlan(Section):
    """The whole section; nothing runs by itself unless it is listed here.

    Attributes:
        jobs: by name.
    """

    jobs: dict[Name, Job] = {}
