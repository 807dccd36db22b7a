"""The simplest machine: compute or memory, whichever takes longer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from haq_env.cost import CostTable, Roofs
from haq_env.hardware.parameters import check_parameters
from haq_env.hardware.size import counted_costs, float_bytes
from haq_env.layers import LayerTable
from haq_env.policy import MAX_BITS

OUTPUT_BITS = 8  # the bits of the layer that reads them are not known to an additive table


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A bit-serial machine that is described by its roofs alone.

    ``latency = max(MACs x w x a / peak_ops, traffic / bandwidth) + overhead_s`` for each layer.
    The traffic is the least there can be: every weight (w bits) is read once for the batch,
    every input (a bits) is read once and every output is written once (8 bits). No buffers, no
    refetches, no pipeline fill. Against the exact BISMO model a plain roofline is off by up to
    40 % on single layers (docs/hardware.md section 2.5); use it for machines of which nothing
    better is known.

    Attributes:
        peak_ops: products of one weight bit and one activation bit per second.
        bandwidth: DRAM bytes per second, reads and writes together.
        overhead_s: seconds that every layer costs besides, such as a kernel launch.
        batch: samples that are computed at once.
        name: what the machine is called in reports.

    Raises:
        InputError: a parameter has the wrong type or is not positive.
    """

    peak_ops: float
    bandwidth: float
    overhead_s: float = 0.0
    batch: int = 1
    name: str = "roofline"

    def __post_init__(self) -> None:
        check_parameters(self, may_be_zero=("overhead_s",))

    def cost_table(self, layers: LayerTable) -> CostTable:
        """Compute latency (ms), traffic (bytes), size, bit operations and MACs of a batch."""
        bits = np.arange(1, MAX_BITS + 1, dtype=np.float64)
        w_bits, a_bits = bits[:, None], bits[None, :]
        counted = counted_costs(layers, self.batch)
        inputs = np.array([layer.input_features for layer in layers], dtype=np.float64)
        outputs = np.array(
            [layer.out_channels * layer.pixels for layer in layers], dtype=np.float64
        )
        per_sample = inputs[:, None, None] * a_bits + outputs[:, None, None] * OUTPUT_BITS
        traffic = counted["size"] + self.batch * per_sample / 8
        seconds = np.maximum(counted["bitops"] / self.peak_ops, traffic / self.bandwidth)
        return CostTable(
            names=layers.names,
            values={"latency": (seconds + self.overhead_s) * 1e3, "traffic": traffic, **counted},
            hardware=self.name,
            batch=self.batch,
            source="roofline with once-only traffic",
            constants=float_bytes(layers),
            roofs=Roofs(bandwidth=self.bandwidth, peak=self.peak_ops / (w_bits * a_bits)),
            missing={
                "energy": "A roofline says nothing of energy.",
                "cycles": "A roofline has no clock.",
            },
        )
