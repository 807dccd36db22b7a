"""Worker processes that do not outlive the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor

from haq_env.malloc import keep_freed_memory


def prepare_worker() -> None:
    """Make this worker end with the process that started it, and only then: an initializer.

    It keeps the memory it has had, too (`keep_freed_memory`): it does nothing but compute.
    """
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the process that waits, too
    end_with_parent()


def abandon(pool: ProcessPoolExecutor) -> None:
    """End a pool's workers at once, whatever they are doing: it can be done again."""
    # Python 3.14 has a method for it. Only this pool's: the process may have other children
    workers = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.kill()  # a fork may have inherited a handler that would outlive a SIGTERM


def end_with_parent() -> None:
    """End this worker when the process that started it is gone, however it went.

    It is for the initializer of a pool; in a process that multiprocessing did not start it does
    nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
