"""Facts of the machine that a report was made on."""

import os
import platform
from pathlib import Path

import psutil

CPU_FACTS = Path("/proc/cpuinfo")


def facts() -> dict[str, str]:
    """Cores that this process may use, memory, kernel, Python."""
    gib = psutil.virtual_memory().total / 1024**3
    return {
        "cores": f"{len(os.sched_getaffinity(0))} ({_processor()})",
        "memory": f"{gib:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": platform.python_version(),
    }


def _processor() -> str:
    if CPU_FACTS.exists():
        for line in CPU_FACTS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"
