"""What can be counted without a machine: model size, bit operations, multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from haq_env.cost import CostTable, Grid
from haq_env.hardware.parameters import check_parameters
from haq_env.layers import LayerTable
from haq_env.policy import MAX_BITS

FLOAT_BYTES = 4  # biases and normalisation parameters stay in fp32


def counted_costs(layers: LayerTable, batch: int = 1) -> dict[str, Grid]:
    """Count size, bit operations and multiply-accumulates of every layer and bit pair.

    Args:
        layers: the network.
        batch: samples that are computed at once; the size does not depend on it.

    Returns:
        ``"size"`` in bytes (weights x w / 8), ``"bitops"`` (MACs x w x a) and ``"macs"``, each
        float64 [L, 8, 8] as [layer, w_bits - 1, a_bits - 1].
    """
    bits = np.arange(1, MAX_BITS + 1, dtype=np.float64)
    w_bits, a_bits = bits[:, None], bits[None, :]
    weights = np.array([layer.weights for layer in layers], dtype=np.float64)[:, None, None]
    macs = batch * np.array([layer.macs for layer in layers], dtype=np.float64)[:, None, None]
    shape = (len(layers), MAX_BITS, MAX_BITS)
    return {
        "size": np.broadcast_to(weights * w_bits / 8, shape).copy(),
        "bitops": macs * (w_bits * a_bits),
        "macs": np.broadcast_to(macs, shape).copy(),
    }


def float_bytes(layers: LayerTable) -> dict[str, float]:
    """Return the size constant of a network: parameters that stay in fp32, in bytes."""
    return {"size": float(layers.float_parameters * FLOAT_BYTES)}


@dataclass(frozen=True)
class ModelSize:
    """The size of the stored parameters, whatever machine they run on.

    ``bytes = (sum of weights x w + 32 x float parameters) / 8``. Activations take no part. The
    numbers that HAQ's Table 6 prints under "MB" are MiB, 2**20 bytes, and count the first
    convolution at 32 bits for every policy: ``ModelSize(first_conv_bits=32)`` reproduces its
    twelve sizes to the last digit. The default counts the first convolution at the bits that the
    policy gives it, which is what a search that pins it to 8 bits really stores.
    Code books of clustered weights are not counted, as in the paper (docs/hardware.md section 4).

    Attributes:
        name: what the model is called in reports.
        first_conv_bits: bits of every weight of the first convolution, whatever the policy says;
            None: those of the policy.

    Raises:
        InputError: a parameter has the wrong type or is not positive.
    """

    name: str = "size"
    first_conv_bits: int | None = None

    def __post_init__(self) -> None:
        check_parameters(self)

    def cost_table(self, layers: LayerTable) -> CostTable:
        """Count size (bytes), bit operations and MACs of one sample."""
        values = counted_costs(layers)
        notes: tuple[str, ...] = ()
        first = next((i for i, layer in enumerate(layers) if layer.kind != "linear"), None)
        if self.first_conv_bits is not None and first is not None:
            values["size"][first] = layers[first].weights * self.first_conv_bits / 8
            notes = (f"first convolution counted at {self.first_conv_bits} bits",)
        return CostTable(
            names=layers.names,
            values=values,
            hardware=self.name,
            source="counted from the layers' shapes",
            constants=float_bytes(layers),
            notes=notes,
            metric="size",
        )
