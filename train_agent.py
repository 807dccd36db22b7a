"""Search a mixed-precision policy with an off-the-shelf agent, or a baseline.

    python train_agent.py --env HAQ-BISMO-Edge-v0 --algo sac --episodes 300 --out runs/demo

It is `haq-env search` (haq_env/commands/search.py) for those who work in a clone.
"""

from __future__ import annotations

import sys

from haq_env.cli import main

if __name__ == "__main__":
    main(["search", *sys.argv[1:]])
