"""Search methods: all take a task and spend evaluations. One file and one line here for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from haq_env.registry import Registry

if TYPE_CHECKING:
    from haq_env.search.history import History
    from haq_env.task import Task

__all__ = ["NEEDS", "SEARCH", "Search", "check_needs"]


class Search(Protocol):
    """A search method.

    One that takes ``history: History | None = None`` as well, and hands it to
    `haq_env.search.history.begin`, can be watched and written down while it runs.
    """

    def __call__(self, task: Task, evaluations: int, seed: int) -> History:
        """Spend evaluations on a task, the uniform policy first, and return all of them."""
        ...


SEARCH: Registry[Search] = Registry(
    "search method",
    {
        "uniform": "haq_env.search.simple:uniform",
        "random": "haq_env.search.simple:random",
        "annealing": "haq_env.search.annealing:annealing",
        "evolution": "haq_env.search.evolution:evolution",
        "bayesian": "haq_env.search.bayesian:bayesian",
        "greedy": "haq_env.search.greedy:greedy",
        "greedy-sensitivity": "haq_env.search.greedy:greedy_sensitivity",
        "ilp-law": "haq_env.search.ilp:ilp_law",
        "ilp-kl": "haq_env.search.ilp:ilp_kl",
        "ilp-fit": "haq_env.search.ilp:ilp_fit",
        "ilp-hawq-v2": "haq_env.search.ilp:ilp_hawq_v2",
        "ilp-hawq": "haq_env.search.ilp:ilp_hawq",
    },
)

# What only some methods need: a function that raises InputError where it is missing.
NEEDS: Registry[Callable[[], None]] = Registry(
    "need", {"bayesian": "haq_env.search.bayesian:check_installed"}
)


def check_needs(method: str) -> None:
    """See that what a method needs besides this package is installed, before anything is spent.

    Args:
        method: any name; one that is not in `NEEDS` needs nothing.

    Raises:
        InputError: a package is missing. The message says how to install it.
    """
    if method in NEEDS:
        NEEDS[method]()
