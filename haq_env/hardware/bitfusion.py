"""BitFusion, the spatial accelerator that fuses 2-bit multipliers, as HAQ simulated it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from haq_env.cost import CostTable, Roofs
from haq_env.errors import InputError
from haq_env.hardware.parameters import check_parameters
from haq_env.hardware.size import counted_costs, float_bytes
from haq_env.hardware.tiling import Found, Shape, Tiling
from haq_env.layers import Layer, LayerTable
from haq_env.policy import MAX_BITS

IMAGE_BITS = 8  # the first layer reads the image, whatever activation bits a policy gives it


@dataclass(frozen=True, kw_only=True)
class BitFusion:
    """A systolic array of Fusion Units: latency and energy of every layer at every pair of bits.

    For each layer the tile sizes and the loop order that take the fewest cycles are searched for;
    latency and energy are what these cost. The defaults are the configuration that the open
    BitFusion simulator ships; nothing is fitted. With them HAQ's Tables 4 and 5 come out within
    0.03 % and 0.15 %. Formulas, evidence and choices are in docs/hardware.md section 3.

    The first layer reads the image at 8 bits: all its activation columns are alike. Batch
    normalisation, pooling and additions cost nothing.

    Not verified: other networks than MobileNet-V1 (HAQ publishes no others), batches above 1,
    grouped convolutions that are not depthwise (run as dense ones), linear layers applied to
    several positions (each counts as a sample), operands of 1 bit (computed as 2 bits).

    Attributes:
        rows: Fusion Units along the reduction.
        columns: Fusion Units along the output channels.
        clock_hz: clock.
        bandwidth_bits: bits per cycle to and from DRAM.
        weight_buffer: bytes of the weight buffer; half of each buffer holds the next tile.
        input_buffer: bytes of the input buffer.
        output_buffer: bytes of the output buffer.
        min_bits: narrowest operand; fewer bits compute as slowly.
        max_bits: widest operand, one for each Fusion Unit; 8 or more.
        output_bits: bits of outputs and partial sums, on chip and in DRAM.
        core_pj: picojoules per busy cycle of the whole array.
        weight_read_pj: picojoules per bit read from the weight buffer.
        weight_write_pj: picojoules per bit written to the weight buffer.
        input_read_pj: picojoules per bit read from the input buffer.
        input_write_pj: picojoules per bit written to the input buffer.
        output_read_pj: picojoules per bit read from the output buffer.
        output_write_pj: picojoules per bit written to the output buffer.
        dram_pj: picojoules per bit to or from DRAM.
        groups: how depthwise convolutions run. "dense": as if they had no groups, which is what
            HAQ's numbers contain; "block": as dense convolutions of as many channels as eight rows
            take, one after the other, which is close to the laboratory's later tables.
        pad: pad weight and output tiles to the array's size, as the public simulator does.
        monotone: let more bits never cost less (`CostTable.monotone`), against artefacts of the
            tile search.
        batch: samples that are computed at once.
        name: what the machine is called in reports.

    Raises:
        InputError: a parameter has the wrong type, is not positive or does not fit the others.
    """

    rows: int = 16
    columns: int = 32
    clock_hz: float = 500e6
    bandwidth_bits: int = 192
    weight_buffer: int = 64 * 1024
    input_buffer: int = 32 * 1024
    output_buffer: int = 16 * 1024
    min_bits: int = 2
    max_bits: int = 8
    output_bits: int = 32
    core_pj: float = 235.104
    weight_read_pj: float = 0.021365656
    weight_write_pj: float = 0.028916156
    input_read_pj: float = 0.059474375
    input_write_pj: float = 0.113704063
    output_read_pj: float = 0.033155313
    output_write_pj: float = 0.073084063
    dram_pj: float = 15.0
    groups: Literal["dense", "block"] = "dense"
    pad: bool = False
    monotone: bool = False
    batch: int = 1
    name: str = "bitfusion"

    def __post_init__(self) -> None:
        check_parameters(self)
        if self.max_bits < MAX_BITS or self.min_bits > self.max_bits:
            raise InputError(
                f"BitFusion: max_bits must be {MAX_BITS} or more and min_bits at most max_bits, "
                f"not max_bits = {self.max_bits!r} and min_bits = {self.min_bits!r}."
            )

    def fused(self, w_bits: NDArray[np.int64], a_bits: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many products of w x a bits one Fusion Unit computes per cycle."""
        by_weight = self.max_bits // np.maximum(w_bits, self.min_bits)
        by_activation = self.max_bits // np.maximum(a_bits, self.min_bits)
        return np.asarray(by_weight * by_activation, dtype=np.int64)

    def cost_table(self, layers: LayerTable) -> CostTable:
        """Compute cycles, latency (ms), energy (mJ) and DRAM traffic (bytes) of a batch.

        Size, bit operations and MACs too; these count a depthwise convolution's own, whatever
        the array does.

        Raises:
            InputError: a layer is not square, or has no tile that fits the buffers.
        """
        done: dict[tuple[Shape, str, bool], Found] = {}  # networks repeat their layers
        found = []
        unrolled = next((i for i, layer in enumerate(layers) if layer.kind != "linear"), None)
        for index, layer in enumerate(layers):
            shape = self._shape(layer, first=index == unrolled)
            key = (shape, layer.kind, index == 0)
            if key not in done:
                done[key] = self._search(layer, shape, image=index == 0)
            found.append(done[key])
        cycles = np.stack([one.cycles for one in found]).astype(np.float64)
        values = {
            "cycles": cycles,
            "latency": cycles / self.clock_hz * 1e3,
            "energy": np.stack([one.energy for one in found]) * 1e-9,
            "traffic": np.stack([one.dram_bits for one in found]) / 8,
            **counted_costs(layers, self.batch),
        }
        bits = np.arange(1, MAX_BITS + 1)
        units = self.rows * self.columns * self.clock_hz
        table = CostTable(
            names=layers.names,
            values=values,
            hardware=self.name,
            batch=self.batch,
            clock_hz=float(self.clock_hz),
            source="BitFusion model of haq-env, docs/hardware.md section 3",
            constants=float_bytes(layers),
            roofs=Roofs(
                bandwidth=self.bandwidth_bits * self.clock_hz / 8,
                peak=units * self.fused(bits[:, None], bits[None, :]).astype(np.float64),
            ),
        )
        return table.monotone() if self.monotone else table

    def _search(self, layer: Layer, shape: Shape, *, image: bool) -> Found:
        """Cost one layer at all bits, [8, 8] each."""
        w_bits = np.arange(1, MAX_BITS + 1, dtype=np.int64)[:, None]
        a_bits = np.array([IMAGE_BITS]) if image else w_bits[:, 0]
        if self.groups == "block" and layer.kind == "depthwise":
            return self._blocks(layer, shape, w_bits, a_bits)
        return Tiling(self, layer.name, shape).search(w_bits, a_bits)

    def _blocks(
        self, layer: Layer, shape: Shape, w_bits: NDArray[np.int64], a_bits: NDArray[np.int64]
    ) -> Found:
        """Cost a depthwise layer as dense ones of eight rows' channels; the last block is full."""
        fused = np.broadcast_to(self.fused(w_bits, a_bits), (MAX_BITS, MAX_BITS))
        result = Found.empty()
        for products in np.unique(fused):
            channels = min(8 * int(products), layer.in_channels)
            multiplier = layer.out_channels // layer.in_channels
            one = replace(shape, in_channels=channels, out_channels=channels * multiplier)
            found = Tiling(self, layer.name, one).search(w_bits, a_bits)
            blocks = -(-layer.in_channels // channels)
            here = fused == products
            result.cycles[here] = blocks * found.cycles[here]
            result.energy[here] = blocks * found.energy[here]
            result.dram_bits[here] = blocks * found.dram_bits[here]
        return result

    def _shape(self, layer: Layer, *, first: bool) -> Shape:
        if layer.kind == "linear":
            batch = self.batch * layer.pixels
            return Shape(batch, 1, 1, 1, layer.in_channels, layer.out_channels, im2col=False)
        for what in ("kernel", "stride", "out_size"):
            height, width = getattr(layer, what)
            if height != width:
                raise InputError(
                    f"layer {layer.name!r}: {what} is {height} x {width}, but the BitFusion model "
                    "knows square kernels, strides and maps only."
                )
        return Shape(
            batch=self.batch,
            kernel=layer.kernel[0],
            stride=layer.stride[0],
            out_side=layer.out_size[0],
            in_channels=layer.in_channels,
            out_channels=layer.out_channels,
            im2col=first,
        )
