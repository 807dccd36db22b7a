"""Off-the-shelf agents (Stable-Baselines3) on the environments."""

from __future__ import annotations

from haq_env.agents.algorithms import ALGORITHMS

__all__ = ["ALGORITHMS"]
