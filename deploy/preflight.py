"""What must be true before anything is started: packages, ports, memory, disk."""

import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy.parts import Part

MIB = 2**20
DISK_MB = 500
MODEL_DISK_MB = 800


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `remedy` says what to do where it is not good."""

    subject: str
    good: bool
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


def inspect(parts: Sequence[Part], home: Path, *, ports: bool = True) -> list[Finding]:
    """Everything that was looked at for `parts`; `ports` False leaves out whether they are free."""
    findings = [finding for part in parts for finding in packages(part)]
    if ports:
        findings += [port(part) for part in parts if part.address is not None]
        findings += _doubled(parts)
    return [*findings, memory(parts), disk(parts, home)]


def problems(parts: Sequence[Part], home: Path) -> list[Finding]:
    """What keeps `parts` from being started."""
    return [finding for finding in inspect(parts, home) if not finding.good]


def packages(part: Part) -> list[Finding]:
    """Whether what the part needs is installed."""
    missing = [requirement for requirement in part.requires if requirement.missing()]
    if not missing:
        return [Finding(part.name, True, "installed")] if part.requires else []
    return [
        Finding(part.name, False, f"{one.what} is not installed", one.install) for one in missing
    ]


def port(part: Part) -> Finding:
    """Whether the part's port is free."""
    host, number = part.address or ("", 0)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            remedy = f"{_holder(number)}stop it, or give {part.name} another port in the file"
            return Finding(part.name, False, f"port {number} on {host}: {error.strerror}", remedy)
    return Finding(part.name, True, f"port {number} is free")


def memory(parts: Sequence[Part]) -> Finding:
    """Whether there is memory for all of them."""
    wanted = sum(part.memory_mb * part.copies for part in parts)
    available = psutil.virtual_memory().available // MIB
    largest = max(parts, key=lambda part: part.memory_mb * part.copies)
    remedy = (
        f"the largest is {largest.name} with {largest.memory_mb * largest.copies} MB: close other "
        "programs, or switch parts off (llmops up --engine none, or stack.… in the file)"
    )
    good = available >= wanted
    words = f"{wanted} MB wanted, {available} MB available"
    return Finding("memory", good, words, "" if good else remedy)


def disk(parts: Sequence[Part], home: Path) -> Finding:
    """Whether there is room under LLMOPS_HOME."""
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    to_convert = any(part.preparation and not part.preparation.done.exists() for part in parts)
    wanted = DISK_MB + (MODEL_DISK_MB if to_convert else 0)
    free = shutil.disk_usage(place).free // MIB
    good = free >= wanted
    remedy = "" if good else "make room, or set LLMOPS_HOME to another disk"
    return Finding("disk", good, f"{wanted} MB wanted in {place}, {free} MB free", remedy)


def _doubled(parts: Sequence[Part]) -> list[Finding]:
    seen: dict[int, str] = {}
    findings = []
    for part in parts:
        number = part.address[1] if part.address else 0
        if number and number in seen:
            what = f"port {number} is {seen[number]}'s as well"
            findings.append(Finding(part.name, False, what, "give one of them another port"))
        seen.setdefault(number, part.name)
    return findings


def _holder(number: int) -> str:
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return ""
    for connection in connections:
        bound = connection.laddr[1] if connection.laddr else 0
        if connection.status == psutil.CONN_LISTEN and bound == number and connection.pid:
            try:
                name = " ".join(psutil.Process(connection.pid).cmdline())[:60]
            except psutil.Error:
                name = "a process"
            return f"it is held by pid {connection.pid} ({name}): "
    return ""
