"""Who runs a cell, and how others see that it is gone."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

LEASE = 60.0  # seconds without a sign of life after which an owner counts as dead


@dataclass(frozen=True)
class Owner:
    """A sweep that runs cells.

    Attributes:
        token: its name, which no other sweep has.
        machine: where its process number means something; empty if that cannot be told.
        pid: number of its process.
        started: when the process started, as the machine counts, since numbers are used again.
        beat: its last sign of life, seconds since 1970.
    """

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    machine: str = field(default_factory=lambda: _machine())
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: _started(os.getpid()))
    beat: float = field(default_factory=time.time)

    def gone(self) -> bool:
        """Say whether it is dead: no such process here, no sign of life for too long elsewhere."""
        if self.machine and self.machine == _machine():
            # certain, where a clock that was set or a machine that slept would end the living
            return _started(self.pid) != self.started
        return time.time() - self.beat > LEASE


def _machine() -> str:
    """Name the running system and its process numbers: a container has its own, a reboot new ones.

    Empty where there is no ``/proc``; only the lease counts there.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started; empty if there is none, or only its remains."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()  # the name before may contain anything
    return "" if state in "ZX" else fields[18]
