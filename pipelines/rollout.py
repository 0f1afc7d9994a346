"""Adapters on every replica of an engine: loaded and seen before they get traffic, kept there.
Versions of tabular models on every replica of a model server take the same way.

Invariants: `load` returns only when every replica lists the adapter, and leaves none half-way: if
one fails, those that loaded it now unload it again. `reconcile` brings back what an engine forgot
when it restarted, and unloads what is not wanted any more only after a grace period, because the
gateway's workers may still send to it. Names that are not ours are never touched.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import aiohttp

from pipelines.replica import Replica, ReplicaFailed

LOAD_SECONDS = 10.0
GRACE_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
DIGITS = 12


class RolloutFailed(RuntimeError):
    """An adapter is not on every replica; the message names each one's trouble.

    Attributes:
        failures: sentences by the replica's address.
    """

    def __init__(self, what: str, failures: Mapping[str, str]):
        self.failures = dict(failures)
        each = "; ".join(f"{url}: {why}" for url, why in self.failures.items())
        super().__init__(f"{what}: {each}")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A replica that serves the adapter.

    Attributes:
        newly: whether this call loaded it.
        seconds: until it was seen in the replica's list.
    """

    url: str
    newly: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica after `reconcile`.

    Attributes:
        served: every name that it answers for; empty if it is away.
        loaded, unloaded: what was changed now.
        failures: sentences; empty if it is as it should be.
    """

    url: str
    served: frozenset[str]
    loaded: tuple[str, ...] = ()
    unloaded: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()


@dataclass(slots=True)
class _Pause:
    """When a load that was refused is tried again."""

    until: float
    seconds: float


class Replicas:
    """All replicas of one engine. For one event loop at a time; opens connections only in calls.

    Args:
        urls: address of each replica, up to and with `/v1`.
        credential: bearer key that the replicas want, or None.
        prefixes: registered models whose adapters are ours: `extractor` means the names
            `extractor-<12 hex digits>`.
        grace_seconds: how long an adapter stays after it was last wanted. Longer than the gateway's
            workers take to see a changed split, and than a request may wait in them.
        replica: what speaks to one; vLLM's by default.

    Raises:
        ValueError: no address.
    """

    def __init__(
        self,
        urls: Sequence[str],
        credential: str | None = None,
        *,
        prefixes: Collection[str] = (),
        grace_seconds: float = GRACE_SECONDS,
        replica: type[Replica] = Replica,
    ):
        if not urls:
            raise ValueError("an engine without replicas has nothing to load an adapter on")
        self._urls = tuple(url.rstrip("/") for url in urls)
        self._headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        names = "|".join(re.escape(prefix) for prefix in sorted(prefixes))
        self._ours = re.compile(rf"(?:{names})-[0-9a-f]{{{DIGITS}}}" if names else r"(?!)")
        self._grace = grace_seconds
        self._replica = replica
        self._unwanted: dict[tuple[str, str], float] = {}  # since when, by replica and adapter
        self._pauses: dict[tuple[str, str], _Pause] = {}

    async def served(self, url: str) -> set[str]:
        """Names that the replica at `url` answers for.

        Raises:
            RolloutFailed: it does not say so.
        """
        async with self._open((url.rstrip("/"),)) as replicas:
            try:
                return set(await replicas[0].names())
            except ReplicaFailed as error:
                raise RolloutFailed("served models", {url: str(error)}) from error

    async def load(
        self, adapter: str, path: Path, within: float = LOAD_SECONDS
    ) -> tuple[Loaded, ...]:
        """Load `adapter` from `path` on every replica and see it in every list.

        An adapter that is there from the same path is fine. The folder has to stay as long as the
        adapter is served: an engine may read it again.

        Raises:
            RolloutFailed: a replica does not serve it within `within` seconds; those that loaded
                it now have unloaded it again.
        """
        async with self._open(self._urls) as replicas:
            outcomes = await asyncio.gather(
                *(_load(replica, adapter, path, within) for replica in replicas)
            )
            failures = {
                replica.url: outcome
                for replica, outcome in zip(replicas, outcomes, strict=True)
                if isinstance(outcome, str)
            }
            if not failures:
                return tuple(one for one in outcomes if isinstance(one, Loaded))
            undone = [replica for replica in replicas if adapter in replica.asked]
            await _every(undone, lambda replica: replica.unload(adapter))
        raise RolloutFailed(f"{adapter} (in {path}) is not rolled out", failures)

    async def unload(self, adapter: str) -> None:
        """Unload `adapter` from every replica; one that does not have it is fine.

        Raises:
            RolloutFailed: a replica did not; the others have.
        """
        async with self._open(self._urls) as replicas:
            failures = await _every(replicas, lambda replica: replica.unload(adapter))
        if failures:
            raise RolloutFailed(f"{adapter} is not unloaded everywhere", failures)

    async def reconcile(
        self, desired: Mapping[str, Path], within: float = LOAD_SECONDS
    ) -> tuple[ReplicaState, ...]:
        """Bring every replica towards `desired`, adapters with their folders; tells how each is.

        Never raises for a replica that is away or refuses: that is in its state. A load that was
        refused is tried again after a pause that doubles up to a minute.
        """
        async with self._open(self._urls) as replicas:
            states = (self._reconcile(replica, desired, within) for replica in replicas)
            return tuple(await asyncio.gather(*states))

    async def _reconcile(
        self, replica: Replica, desired: Mapping[str, Path], within: float
    ) -> ReplicaState:
        try:
            served = await replica.names()
        except ReplicaFailed as error:
            return ReplicaState(replica.url, frozenset(), failures=(str(error),))
        loaded, unloaded, failures = [], [], []
        for adapter in [name for name in desired if name not in served]:
            try:
                if self._may_try(replica.url, adapter):
                    await replica.ensure(adapter, desired[adapter], within)
                    self._pauses.pop((replica.url, adapter), None)
                    loaded.append(adapter)
            except ReplicaFailed as error:
                failures.append(f"{adapter}: {error}")
                self._pause(replica.url, adapter)
        for adapter in self._expired(replica.url, served, desired):
            try:
                await replica.unload(adapter)
                unloaded.append(adapter)
            except ReplicaFailed as error:
                failures.append(f"{adapter} is not unloaded: {error}")
        now = frozenset({*served, *loaded} - {*unloaded})
        return ReplicaState(replica.url, now, tuple(loaded), tuple(unloaded), tuple(failures))

    def _expired(
        self, url: str, served: Mapping[str, str | None], desired: Collection[str]
    ) -> list[str]:
        """Adapters of ours on `url` that nobody has wanted for the grace period."""
        now = monotonic()
        unwanted = {
            adapter
            for adapter, path in served.items()
            if path is not None and adapter not in desired and self._ours.fullmatch(adapter)
        }
        for key in [key for key in self._unwanted if key[0] == url and key[1] not in unwanted]:
            del self._unwanted[key]
        since = {adapter: self._unwanted.setdefault((url, adapter), now) for adapter in unwanted}
        return sorted(adapter for adapter in unwanted if now - since[adapter] >= self._grace)

    def _may_try(self, url: str, adapter: str) -> bool:
        pause = self._pauses.get((url, adapter))
        return pause is None or monotonic() >= pause.until

    def _pause(self, url: str, adapter: str) -> None:
        before = self._pauses.get((url, adapter))
        seconds = FIRST_PAUSE if before is None else min(before.seconds * 2, LONGEST_PAUSE)
        self._pauses[url, adapter] = _Pause(monotonic() + seconds, seconds)

    @asynccontextmanager
    async def _open(self, urls: Sequence[str]) -> AsyncIterator[list[Replica]]:
        async with aiohttp.ClientSession(headers=self._headers) as session:
            yield [self._replica(session, url) for url in urls]


async def _load(replica: Replica, adapter: str, path: Path, within: float) -> Loaded | str:
    """The replica that serves it, or why it does not."""
    began = monotonic()
    try:
        newly = await replica.ensure(adapter, path, within)
    except ReplicaFailed as error:
        return str(error)
    return Loaded(replica.url, newly, monotonic() - began)


async def _every(
    replicas: Sequence[Replica], act: Callable[[Replica], Awaitable[object]]
) -> dict[str, str]:
    """Do `act` on all at once; why it failed, by address."""

    async def one(replica: Replica) -> str | None:
        try:
            await act(replica)
        except ReplicaFailed as error:
            return str(error)
        return None

    outcomes = await asyncio.gather(*(one(replica) for replica in replicas))
    pairs = zip(replicas, outcomes, strict=True)
    return {replica.url: why for replica, why in pairs if why is not None}
