"""Runs side by side on the machines of a Ray cluster, a core each."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from haq_env.errors import InputError
from haq_env.leaderboard.protocol import Cell, Outcome, Track
from haq_env.leaderboard.running import run_cell
from haq_env.summation import AVX2

PATIENCE = 15.0  # seconds for a cluster to answer
WITHOUT_CORES = 60.0  # seconds that a cluster may have no core left


def start(folder: Path, jobs: int, address: str) -> RayCluster:
    """Connect to a cluster, whose machines keep evaluations in folders of their own."""
    return RayCluster(address)


class RayCluster:
    """A running cluster, which may gain and lose machines meanwhile.

    Every machine needs this package. It keeps evaluations in a local folder of its own, and sends
    back what came out; a machine that is lost takes with it only what it was computing.

    Args:
        address: ``"host:port"``, ``"ray://host:port"``, or ``"auto"`` for the cluster that this
            machine belongs to.
        folder: of the evaluations, on every machine; see `haq_env.leaderboard.running.run_cell`.

    Raises:
        InputError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(self, address: str = "auto", folder: Path | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("the Ray engine needs Ray: pip install 'haq-env[ray]'.") from error
        _ask(address)
        self._ray: Any = ray  # its annotations know neither all it has nor all it takes
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray's own, gRPC's, the operating system's
            raise _silent(address, str(error)) from error
        self._address, self._folder = address, folder
        # a second try is the store's to give, which counts them
        run = self._ray.remote(num_cpus=1, max_retries=0)(run_cell)
        told = {name: os.environ[name] for name in AVX2 if name in os.environ}
        self._run = run.options(runtime_env={"env_vars": told}) if told else run
        self._last_core = time.monotonic()

    def slots(self) -> int:
        """Return the number of cores of the machines that are there now."""
        try:
            cores = int(self._ray.cluster_resources().get("CPU", 0))
        except Exception as error:
            raise self._gone(error) from error
        now = time.monotonic()
        if cores:
            self._last_core = now
        elif now - self._last_core > WITHOUT_CORES:
            raise InputError(f"the Ray cluster {self._address} has no core left.")
        return cores

    def submit(self, track: Track, cell: Cell) -> Future[Outcome]:
        """Begin a run wherever there is a core."""
        try:
            future: Future[Outcome] = self._run.remote(track, cell, self._folder).future()
        except Exception as error:
            raise self._gone(error) from error
        return future

    def close(self) -> None:
        """Leave the cluster, which ends what it computes for this process."""
        self._ray.shutdown()

    def _gone(self, error: Exception) -> InputError:
        return InputError(f"the Ray cluster {self._address} is gone ({_line(str(error))}).")


def _ask(address: str) -> None:
    """See that a cluster answers, in bounded time, which connecting to it would not promise.

    Ray's client (``ray://``) has a limit of its own.
    """
    if address.startswith("ray://"):
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    command += [] if address == "auto" else ["--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise _silent(address, f"silent for {PATIENCE:g} seconds") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise _silent(address, lines[-1])


def _silent(address: str, why: str) -> InputError:
    where = "on this machine" if address == "auto" else f"at {address}"
    return InputError(
        f"no Ray cluster answers {where} ({_line(why)}): start one with `ray start --head`, or "
        "give its address."
    )


def _line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else "no reason given"
