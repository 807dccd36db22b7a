"""One order in which all x86 processors add, so that a run comes out elsewhere to the last digit.

Processors with AVX-512 add in another order than those with AVX2, so sums differ in their last
digits, and at few bits finetuning amplifies that (`haq_env.leaderboard.arithmetic`). What is asked
for here is the order of AVX2, which every x86 processor of the last ten years can follow.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from haq_env.errors import InputError

# What torch's own loops, oneDNN's convolutions and MKL's products go by. All three look once, when
# they compute for the first time.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}


def pinned() -> dict[str, str]:
    """Return the environment variables that make this machine add in the order of AVX2.

    They must be set before torch is loaded, and are inherited by processes that are started.

    Returns:
        Those that are not set yet; none if torch is loaded, so that it is too late, or where the
        processor is not known to have AVX2 (other than x86, other systems than Linux).
    """
    if "torch" in sys.modules or not _has_avx2():
        return {}
    return {name: value for name, value in AVX2.items() if name not in os.environ}


def pin() -> None:
    """Add in the order of AVX2 from now on, here and in processes that are started.

    Raises:
        InputError: the processor is not known to have AVX2, torch is loaded already, or the
            environment asks for another order.
    """
    for name, value in AVX2.items():
        if os.environ.get(name, value) != value:
            raise InputError(f"{name} is {os.environ[name]} and must be {value}, or not set.")
    if all(name in os.environ for name in AVX2):
        return
    if not _has_avx2():
        raise InputError("this processor, or this system, is not known to have AVX2.")
    if "torch" in sys.modules:
        raise InputError("torch is loaded already, and keeps to the order that it began with.")
    os.environ |= AVX2


def _has_avx2() -> bool:
    flags = ""
    with suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return re.search(r"\bavx2\b", flags) is not None
