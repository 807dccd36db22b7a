"""Which arithmetic a machine has: whether it can repeat another one's accuracies to the last bit.

Processors add in different orders, so their sums differ in the last digits. At few bits that is
not harmless: an activation on the border between two codes falls to the other side, and the next
steps of the finetuning go on from there. Two kinds of processor train two networks from one policy
and one seed, some points of accuracy apart. So numbers say which arithmetic they are from.

So the commands of the leaderboard ask for one order, that of AVX2 (`haq_env.summation`), which
every x86 processor of the last ten years has: on such machines numbers come out to the last digit,
whether they have AVX-512 or not. Without it, and on other processors, they do not.

Measured without it (``benchmarks/leaderboard_machines.py``): 103 policies that were found on a
processor with AVX-512 and executed on one with AVX2, on which gradients also summed in another
order. The accuracies inside the search, one seed on 450 held-out images: 25 within 0.5
points, the largest difference 7.78, standard deviation 1.99, lower on average by 1.30, since a
search keeps what was lucky where it ran. The scores, means of three fresh seeds on test images: the
largest difference 2.30, standard deviation 1.21, on average 0.17 higher.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

FORM = "([0-9a-f]{16})?"  # of a signature; empty where nobody has noted it


class Tolerance(NamedTuple):
    """By how many points of top-1 numbers of one policy may differ.

    Attributes:
        single: one measurement.
        score: the mean over the fresh seeds.
    """

    single: float
    score: float


EXACT = Tolerance(1e-9, 1e-9)  # what this package has published on the same arithmetic
SAME = Tolerance(0.5, 0.5)  # claims, which others may have rounded
OTHER = Tolerance(12.0, 5.0)  # the mean and some four standard deviations and more, see above


def tolerance(theirs: str, *, lenient: bool = False) -> Tolerance:
    """Return by how much claims may differ from what this machine measures.

    Args:
        theirs: the arithmetic that a claim says it is from; empty if it says none.
        lenient: allow `OTHER` where that is not this machine's.
    """
    return OTHER if lenient and theirs != arithmetic() else SAME


@cache
def arithmetic() -> str:
    """Return the signature of this machine's arithmetic, 16 hexadecimal digits.

    It is a digest of the weights that the bundled network has after its short finetuning at 4
    bits, on one thread: equal exactly where a finetuning is repeated to the last bit, whatever it
    is that decides that (the processor, what `haq_env.summation` told it, torch, the libraries
    below).
    """
    from haq_env.evaluation.device import one_thread
    from haq_env.evaluation.fingerprint import digest, raw
    from haq_env.make import make_task
    from haq_env.policy import uniform

    evaluator = make_task().trained()
    with one_thread():
        network = evaluator.bench.network
        evaluator.measurer.measure(uniform(len(network.layers), 4, 4))
    return digest(raw(*named) for named in network.module.named_parameters())[:16]
