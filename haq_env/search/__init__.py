"""Search methods: all take a task and spend evaluations. One file and one line here for each."""

from __future__ import annotations

from typing import Protocol

from haq_env.registry import Registry
from haq_env.search.history import History
from haq_env.task import Task

__all__ = ["SEARCH", "Search"]


class Search(Protocol):
    """A search method."""

    def __call__(self, task: Task, evaluations: int, seed: int) -> History:
        """Spend evaluations on a task, the uniform policy first, and return all of them."""
        ...


SEARCH = Registry(
    "search method",
    {
        "uniform": "haq_env.search.simple:uniform",
        "random": "haq_env.search.simple:random",
        "annealing": "haq_env.search.annealing:annealing",
        "evolution": "haq_env.search.evolution:evolution",
        "bayesian": "haq_env.search.bayesian:bayesian",
        "greedy": "haq_env.search.greedy:greedy",
        "greedy-sensitivity": "haq_env.search.greedy:greedy_sensitivity",
        "ilp-kl": "haq_env.search.ilp:ilp_kl",
        "ilp-fit": "haq_env.search.ilp:ilp_fit",
        "ilp-hawq-v2": "haq_env.search.ilp:ilp_hawq_v2",
        "ilp-hawq": "haq_env.search.ilp:ilp_hawq",
    },
)
