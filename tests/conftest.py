"""One thread for torch: the networks of the tests are small, and threads that wait for each other
on a busy machine cost far more than they save. Set before torch is imported, and inherited by the
processes that tests start.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
