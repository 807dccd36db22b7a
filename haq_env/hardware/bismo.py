"""BISMO, the bit-serial matrix-multiplication overlay of HAQ's edge and cloud FPGAs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq_env.cost import CostTable, Roofs
from haq_env.errors import InputError
from haq_env.hardware.parameters import check_parameters
from haq_env.hardware.size import counted_costs, float_bytes
from haq_env.layers import Layer, LayerTable
from haq_env.policy import MAX_BITS

Ints = NDArray[np.int64]

NO_ENERGY = (
    "BISMO has no published energy model; the parameter board_power_w gives an assumed one, "
    "energy = board power x latency."
)


@dataclass(frozen=True, kw_only=True)
class Bismo:
    """A BISMO overlay: cycles of every layer at every pair of bits, as exact integers.

    A layer becomes matrix products; a product is cut to what the buffers hold; in each part two
    streams fetch the operands while the array multiplies bit by bit. The formulas and their
    evidence are in docs/hardware.md section 2. `edge` and `cloud` are HAQ's two machines.

    Not verified against any published number: other batches than 1 (edge) and 16 (cloud);
    grouped convolutions that are not depthwise; depthwise ones with a channel multiplier; kernels
    above 3 x 3 and layers that are not square; linear layers applied to several positions; K split
    because it does not fit the buffers; both sides of a product cut at once; single layers with
    w != a on the edge. Writing outputs back, normalisation, pooling and additions cost nothing.

    Attributes:
        pe: rows of the array of processing elements, and columns.
        word_bits: bits that a processing element multiplies per cycle; width of a buffer word.
        axi_bits: bits per cycle fetched for each of the two operands; divides word_bits.
        depth: words that the buffer of one row or one column holds, 8 or more.
        clock_hz: clock.
        batch: samples that are computed at once.
        board_power_w: watts of the board, an assumption of the user; enables the metric energy.
        name: what the machine is called in reports.

    Raises:
        InputError: a parameter has the wrong type, is not positive or does not fit the others.
    """

    pe: int
    word_bits: int
    axi_bits: int
    depth: int
    clock_hz: float
    batch: int = 1
    board_power_w: float | None = None
    name: str = "bismo"

    def __post_init__(self) -> None:
        check_parameters(self)
        if self.word_bits % self.axi_bits:
            raise InputError(
                f"Bismo: axi_bits must divide word_bits = {self.word_bits}, not {self.axi_bits!r}."
            )
        if self.depth < MAX_BITS:
            raise InputError(
                f"Bismo: depth must be {MAX_BITS} or more, a word of each bit, not {self.depth!r}."
            )

    def cost_table(self, layers: LayerTable) -> CostTable:
        """Compute cycles, latency (ms), traffic (bytes), size, bit operations and MACs of a batch.

        Energy (mJ) only if the board's power is given; it is then labelled as assumed. Traffic is
        what both streams fetch, refetches included.
        """
        # products per layer, and M, N, K of one: [L, 1, 1] each
        shapes = np.array([self._products(layer) for layer in layers], dtype=np.int64)
        products, m, n, k = (column[:, None, None] for column in shapes.T)
        bits = np.arange(1, MAX_BITS + 1, dtype=np.int64)
        cycles, beats = self.matrix_product(m, n, k, bits[:, None], bits[None, :])
        latency = products * cycles / self.clock_hz * 1e3
        values = {
            "cycles": (products * cycles).astype(np.float64),
            "latency": latency,
            "traffic": products * beats * (self.axi_bits / 8),
            **counted_costs(layers, self.batch),
        }
        if self.board_power_w is not None:
            values["energy"] = self.board_power_w * latency
        return CostTable(
            names=layers.names,
            values=values,
            hardware=self.name,
            batch=self.batch,
            clock_hz=float(self.clock_hz),
            source="BISMO model of haq-env, docs/hardware.md section 2",
            constants=float_bytes(layers),
            notes=() if self.board_power_w is None else ("assumed power",),
            roofs=Roofs(
                bandwidth=2 * self.axi_bits * self.clock_hz / 8,
                peak=self.pe**2 * self.word_bits * self.clock_hz / np.outer(bits, bits),
            ),
            missing={"energy": NO_ENERGY},
        )

    def _products(self, layer: Layer) -> tuple[int, int, int, int]:
        """Return how many matrix products a layer is, and M, N, K of each."""
        taps = layer.kernel[0] * layer.kernel[1]
        if layer.kind == "depthwise":  # the batch takes the place of the output channels
            return layer.out_channels, self.batch, layer.pixels, taps
        if layer.kind == "linear":
            return 1, layer.out_channels, self.batch * layer.pixels, layer.in_channels
        rows, inputs = layer.out_channels // layer.groups, layer.in_channels // layer.groups
        return self.batch * layer.groups, rows, layer.pixels, inputs * taps

    def matrix_product(self, m: Ints, n: Ints, k: Ints, w: Ints, a: Ints) -> tuple[Ints, Ints]:
        """Compute cycles and fetched beats of [m, k] x [k, n], w and a bits; arrays broadcast.

        A beat is axi_bits bits. Where a single tile of K does not fit the buffers, K is split
        into parts that do, and the parts add up (docs/hardware.md section 2.3).
        """
        part = self.depth // np.maximum(w, a)  # words
        parts = (-(-k // self.word_bits) - 1) // part  # full ones before the last
        cycles, beats = self._chunked(m, n, k - parts * part * self.word_bits, w, a)
        if parts.any():
            full_cycles, full_beats = self._chunked(m, n, part * self.word_bits, w, a)
            cycles = cycles + parts * full_cycles
            beats = beats + parts * full_beats
        return cycles, beats

    def _chunked(self, m: Ints, n: Ints, k: Ints, w: Ints, a: Ints) -> tuple[Ints, Ints]:
        """Cut m and n to the buffers; every pair of chunks fetches both operands again."""
        words = -(-k // self.word_bits)
        m_chunk = self.pe * (self.depth // (words * w))
        n_chunk = self.pe * (self.depth // (words * a))
        m_full, n_full = (m - 1) // m_chunk, (n - 1) // n_chunk  # full chunks before the last
        m_last, n_last = m - m_full * m_chunk, n - n_full * n_chunk
        shape = np.broadcast_shapes(m_chunk.shape, n_chunk.shape, m.shape, n.shape)
        by_weights = np.zeros(shape, dtype=np.int64)
        by_activations = np.zeros(shape, dtype=np.int64)
        pairs = (
            (m_last, n_last, np.ones_like(m_full)),
            (m_chunk, n_last, m_full),
            (m_last, n_chunk, n_full),
            (m_chunk, n_chunk, m_full * n_full),
        )
        for rows, columns, count in pairs:
            if not count.any():
                continue
            by_weights += count * self.block(rows, columns, k, w, a)
            by_activations += count * self.block(columns, rows, k, a, w)
        beats = self._beats(k, words)
        fetched = (n_full + 1) * m * w * beats + (m_full + 1) * n * a * beats
        # One order for the whole product: the smaller sum, not the sum of the smaller ones.
        return np.minimum(by_weights, by_activations), fetched

    def block(self, outer: Ints, inner: Ints, k: Ints, outer_bits: Ints, inner_bits: Ints) -> Ints:
        """Compute the cycles of one product that fits the buffers, in one loop order.

        Args:
            outer: rows of the operand whose tiles the outer loop walks (weights: HAQ's WS).
            inner: rows of the other operand.
            k: elements of a row.
            outer_bits: bits of the outer operand's elements.
            inner_bits: bits of the inner operand's elements.

        Returns:
            Cycles: one for each step, and as many as the step that waits longest for its words
            waits (docs/hardware.md section 2.4).
        """
        words = -(-k // self.word_bits)
        pair = outer_bits * inner_bits
        outer_tiles, inner_tiles = -(-outer // self.pe), -(-inner // self.pe)
        steps = outer_tiles * inner_tiles * words * pair
        late_outer = self._late(outer, k, outer_bits, inner_tiles * words * pair, pair, 1)
        late_inner = self._late(inner, k, inner_bits, words * pair, pair, outer_bits)
        return np.asarray(steps - 1 + np.maximum(late_outer, late_inner))

    def _late(
        self, rows: Ints, k: Ints, bits: Ints, per_tile: Ints, per_word: Ints, per_bit: Ints | int
    ) -> Ints:
        """Return by how many cycles the words of one operand come after the steps that use them.

        Arrival and use are linear between the first, the last but one and the last tile and word,
        so only these can be the latest.
        """
        words, tiles = -(-k // self.word_bits), -(-rows // self.pe)
        beats = self.word_bits // self.axi_bits
        last_beats = -(-(k - (words - 1) * self.word_bits) // self.axi_bits)
        tile_beats = self.pe * bits * self._beats(k, words)
        late = []
        for tile in (np.zeros_like(tiles), np.maximum(tiles - 2, 0), tiles - 1):
            height = np.minimum(self.pe, rows - tile * self.pe)
            for word in (np.zeros_like(words), np.maximum(words - 2, 0), words - 1):
                word_beats = np.where(word < words - 1, beats, last_beats)
                base = tile * (tile_beats - per_tile) + height * (bits * beats * word)
                base = base - word * per_word
                step = height * word_beats
                for bit in (0, bits - 1):
                    late.append(base + (bit + 1) * step - bit * per_bit)
        return reduce(np.maximum, late)

    def _beats(self, k: Ints, words: Ints) -> Ints:
        """Return the beats of one bit of a row of k elements; only its last word may be short."""
        last = -(-(k - (words - 1) * self.word_bits) // self.axi_bits)
        return np.asarray((words - 1) * (self.word_bits // self.axi_bits) + last)


def edge(**overrides: Any) -> Bismo:
    """Return HAQ's edge accelerator: BISMO on a Zynq-7020, batch 1, 200 MHz.

    Args:
        **overrides: parameters of `Bismo` that differ, for example ``batch=4``.
    """
    machine: dict[str, Any] = {
        "name": "bismo-edge",
        "pe": 8,
        "word_bits": 256,
        "axi_bits": 64,
        "depth": 1024,
        "clock_hz": 200e6,
        "batch": 1,
    }
    return Bismo(**(machine | overrides))


def cloud(**overrides: Any) -> Bismo:
    """Return HAQ's cloud accelerator: BISMO on a VU9P, batch 16, 200 MHz.

    Args:
        **overrides: parameters of `Bismo` that differ, for example ``batch=1``.
    """
    machine: dict[str, Any] = {
        "name": "bismo-cloud",
        "pe": 16,
        "word_bits": 256,
        "axi_bits": 256,
        "depth": 1024,
        "clock_hz": 200e6,
        "batch": 16,
    }
    return Bismo(**(machine | overrides))
