"""The search for one layer's tile sizes and loop order on BitFusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from haq_env.errors import InputError
from haq_env.policy import MAX_BITS

if TYPE_CHECKING:
    from haq_env.hardware.bitfusion import BitFusion

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Which loops move through which operand. Loops over the batch (B), the rows and columns of the
# map (both X: they have equally many tiles), input channels (C) and output channels (F).
INPUT_LOOPS, WEIGHT_LOOPS, OUTPUT_LOOPS = "BXC", "CF", "BXF"
NEVER = np.iinfo(np.int64).max  # cycles of a tile that does not fit


@dataclass(frozen=True)
class Shape:
    """A layer as the array sees it: a dense convolution of square maps.

    Attributes:
        batch: samples.
        kernel: side of the kernel.
        stride: stride in both directions.
        out_side: side of the output map.
        in_channels: input channels.
        out_channels: output channels.
        im2col: whether the kernel's taps are unrolled into the reduction (first convolution).
    """

    batch: int
    kernel: int
    stride: int
    out_side: int
    in_channels: int
    out_channels: int
    im2col: bool


@dataclass(frozen=True)
class Found:
    """The cost of one layer in its fastest tiling.

    Attributes:
        cycles: int64 [8, 8] as [w_bits - 1, a_bits - 1].
        energy: picojoules, float64 [8, 8].
        dram_bits: bits to and from DRAM, int64 [8, 8].
    """

    cycles: Ints
    energy: Floats
    dram_bits: Ints

    @classmethod
    def empty(cls) -> Found:
        """Return a result to be filled in."""
        shape = (MAX_BITS, MAX_BITS)
        return cls(np.full(shape, NEVER), np.full(shape, np.inf), np.zeros(shape, dtype=np.int64))

    def take_better(self, cycles: Ints, energy: Floats, dram_bits: Ints) -> None:
        """Keep the fastest tiles, among equally fast ones those of least energy.

        Args:
            cycles: [tiles, 8, A] with A = 8, or 1 where activation bits do not matter.
            energy: picojoules, same shape.
            dram_bits: same shape.
        """
        fastest = cycles.min(axis=0)
        tied = np.where(cycles == fastest, energy, np.inf)
        tile = tied.argmin(axis=0)[None]
        least = np.take_along_axis(tied, tile, axis=0)[0]
        moved = np.take_along_axis(dram_bits, tile, axis=0)[0]
        better = (fastest < self.cycles) | ((fastest == self.cycles) & (least < self.energy))
        for mine, new in ((self.cycles, fastest), (self.energy, least), (self.dram_bits, moved)):
            np.copyto(mine, new, where=better)


class Tiling:
    """All tilings of one layer: docs/hardware.md section 3.2 gives the formulas.

    Arrays have the axes [tile, w_bits, a_bits], each of length 1 where it does not matter.

    Args:
        machine: the accelerator.
        layer: the layer's name, for errors.
        shape: the layer.
    """

    def __init__(self, machine: BitFusion, layer: str, shape: Shape) -> None:
        self.machine, self.layer, self.shape = machine, layer, shape
        out_start = 1 if shape.im2col else machine.columns
        sizes = np.meshgrid(
            _sizes(shape.batch),
            _sizes(shape.out_side),
            _sizes(shape.in_channels),
            _sizes(shape.out_channels, out_start),
            indexing="ij",
        )
        self._set_tiles(*(size.reshape(-1, 1, 1) for size in sizes))

    def _set_tiles(self, batch: Ints, side: Ints, channels: Ints, filters: Ints) -> None:
        shape = self.shape
        self.batch, self.side, self.channels, self.filters = batch, side, channels, filters
        self.loops: Mapping[str, Ints] = {
            "B": -(-shape.batch // batch),
            "X": -(-shape.out_side // side),
            "C": -(-shape.in_channels // channels),
            "F": -(-shape.out_channels // filters),
        }
        self.count = self.loops["B"] * self.loops["X"] ** 2 * self.loops["C"] * self.loops["F"]
        self.pixels = batch * side**2
        self.taps = shape.kernel**2 * channels

    def search(self, w_bits: Ints, a_bits: Ints) -> Found:
        """Find the fastest tiling of every pair of bits.

        Args:
            w_bits: weight bits, [8, 1].
            a_bits: activation bits, [8], or [1] if they do not matter.

        Raises:
            InputError: not even the smallest tile fits half the buffers.
        """
        machine, shape = self.machine, self.shape
        fused = machine.fused(w_bits, a_bits)
        # Double buffering: a tile has half of its buffer, in bits.
        room_in, room_weights, room_out = (
            size * 8 // 2
            for size in (machine.input_buffer, machine.weight_buffer, machine.output_buffer)
        )
        inputs, weights, outputs = self._tile_bits(w_bits, a_bits, fused)
        fits = (inputs <= room_in) & (weights <= room_weights) & (outputs <= room_out)
        some = fits.any(axis=(1, 2))
        if not fits.any(axis=0).all():
            raise InputError(
                f"layer {self.layer!r}: no tile fits half of BitFusion's buffers (weight_buffer = "
                f"{machine.weight_buffer}, input_buffer = {machine.input_buffer}, output_buffer = "
                f"{machine.output_buffer} bytes)."
            )
        self._set_tiles(self.batch[some], self.side[some], self.channels[some], self.filters[some])
        inputs, weights, outputs, fits = inputs[some], weights[some], outputs[some], fits[some]

        compute = self._compute_cycles(fused)
        on_chip = self._on_chip_energy(w_bits, a_bits, fused) + compute * machine.core_pj
        output_pj = machine.output_read_pj + machine.output_write_pj
        width = machine.bandwidth_bits
        best = Found.empty()
        for order in _orders(several=shape.batch > 1, map_=shape.out_side > 1):
            in_total, in_first = self._traffic(order, INPUT_LOOPS, inputs, room_in)
            w_total, w_first = self._traffic(order, WEIGHT_LOOPS, weights, room_weights)
            out_total, out_first = self._traffic(order, OUTPUT_LOOPS, outputs, room_out)
            dram = in_total + w_total + 2 * out_total
            first = in_first + w_first + out_first
            alone = -(-first // width) - (-out_first // width)  # filling and draining
            rest = -((first + out_first - dram) // width)
            cycles = np.maximum(compute, rest) + alone
            np.copyto(cycles, NEVER, where=~fits)
            energy = (
                on_chip
                + in_total * machine.input_write_pj
                + w_total * machine.weight_write_pj
                + out_total * output_pj
                + dram * machine.dram_pj
            )
            best.take_better(cycles, energy, dram)
        return best

    def _tile_bits(self, w_bits: Ints, a_bits: Ints, fused: Ints) -> tuple[Ints, Ints, Ints]:
        """Return the sizes of an input, a weight and an output tile, in bits."""
        machine, shape = self.machine, self.shape
        if shape.im2col:
            inputs = self.pixels * self.taps * a_bits
        else:
            in_side = (self.side - 1) * shape.stride + shape.kernel
            inputs = in_side**2 * self.channels * self.batch * a_bits
        taps, filters = self.taps, self.filters
        if machine.pad:
            taps = _round_up(taps, machine.rows * fused)
            filters = _round_up(filters, machine.columns)
        weights = taps * self.filters * w_bits
        return inputs, weights, self.pixels * filters * machine.output_bits

    def _reduction(self, fused: Ints) -> Ints:
        """Return the cycles that one output takes in a tile."""
        lanes = self.machine.rows * fused
        if self.shape.im2col:
            return np.asarray(-(-self.taps // lanes))
        return np.asarray(self.shape.kernel**2 * -(-self.channels // lanes))

    def _compute_cycles(self, fused: Ints) -> Ints:
        filters = -(-self.filters // self.machine.columns)
        return np.asarray(self.count * self.pixels * filters * self._reduction(fused))

    def _traffic(self, order: str, walked: str, tile: Ints, room: int) -> tuple[Ints, Ints]:
        """Return the DRAM bits of one operand, and how many of them are its first tile.

        Args:
            order: the loops from the innermost to the outermost.
            walked: the loops that move through the operand.
            tile: bits of one tile.
            room: bits that stay on chip.
        """
        total = first = tile
        stays = np.ones_like(tile, dtype=bool)
        for loop in order:
            if loop in walked:
                total = total * self.loops[loop]
                stays = stays & (total <= room)
                first = np.where(stays, total, first)
            else:  # fetched again in every round, unless all of it has stayed
                total = np.where(stays, total, total * self.loops[loop])
        return total, first

    def _on_chip_energy(self, w_bits: Ints, a_bits: Ints, fused: Ints) -> Floats:
        """Return the picojoules of reading the buffers and of updating partial sums."""
        machine, pixels, width = self.machine, self.pixels, self.machine.output_bits
        filters = _round_up(self.filters, machine.columns)
        reduction = self._reduction(fused) * machine.rows * fused
        costs = (  # bits moved if inputs, outputs or weights stay in the array
            reduction * pixels * (a_bits + filters * (w_bits + width)),
            filters * pixels * (width + reduction * (a_bits + w_bits)),
            reduction * filters * (w_bits + pixels * (a_bits + width)),
        )
        stays = np.argmin(np.stack(np.broadcast_arrays(*costs)), axis=0)  # ties: in this order
        macs = self.count * self.taps * self.pixels * self.filters
        reads_in = np.where(stays == 0, macs / self.filters, macs)
        reads_weights = np.where(stays == 2, macs / self.pixels, macs)
        sums = np.where(stays == 1, macs / self.taps, macs)
        return np.asarray(
            reads_in * a_bits * machine.input_read_pj
            + reads_weights * w_bits * machine.weight_read_pj
            + sums * width * (machine.output_read_pj + machine.output_write_pj)
        )


def _sizes(dimension: int, start: int = 1) -> Ints:
    """Return start, its doubles below the dimension, and the dimension itself."""
    sizes = []
    while start < dimension:
        sizes.append(start)
        start *= 2
    return np.array([*sizes, dimension], dtype=np.int64)


def _round_up(number: Ints, multiple: Ints | int) -> Ints:
    return np.asarray(-(-number // multiple) * multiple)


def _orders(*, several: bool, map_: bool) -> tuple[str, ...]:
    """Return the distinct loop orders, innermost loop first, without loops of one round."""
    loops = ("B" if several else "") + ("XX" if map_ else "") + "CF"
    return tuple(sorted({"".join(order) for order in permutations(loops)}))
