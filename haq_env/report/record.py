"""What a network costs, for machines: plain values that fit JSON."""

from __future__ import annotations

from typing import Any

from haq_env.cost import UNITS, CostTable
from haq_env.layers import LayerTable
from haq_env.policy import ACTIVATION, WEIGHT, Bits, as_bits

SCHEMA = 1


def cost_record(layers: LayerTable, costs: CostTable, bits: Bits) -> dict[str, Any]:
    """Describe the cost of one policy.

    Args:
        layers: the network, L layers.
        costs: what a machine says of it.
        bits: int64 [L, 2].

    Returns:
        ``network``, ``hardware``, ``batch`` (all costs are those of a whole batch),
        ``clock_hz``, ``source``, ``notes``, ``units`` (metric to unit), ``layers`` (shape, bits
        and costs of each), ``constants`` (what no bits change), ``totals`` (metric to value and
        unit; layers plus constants), ``missing`` (metric to the reason) and ``uncounted``
        (modules in floating point that no cost but the size counts).
    """
    bits = as_bits(bits, len(layers))
    per_layer = {metric: costs.per_layer(bits, metric) for metric in costs.values}
    rows = []
    for index, layer in enumerate(layers):
        rows.append(
            {
                "index": index,
                "name": layer.name,
                "kind": layer.kind,
                "in_channels": layer.in_channels,
                "out_channels": layer.out_channels,
                "kernel": list(layer.kernel),
                "stride": list(layer.stride),
                "groups": layer.groups,
                "in_size": list(layer.in_size),
                "out_size": list(layer.out_size),
                "w_bits": int(bits[index, WEIGHT]),
                "a_bits": int(bits[index, ACTIVATION]),
                "costs": {metric: float(values[index]) for metric, values in per_layer.items()},
            }
        )
    return {
        "schema": SCHEMA,
        "network": layers.network,
        "hardware": costs.hardware,
        "batch": costs.batch,
        "clock_hz": costs.clock_hz,
        "metric": costs.metric,
        "source": costs.source,
        "notes": list(costs.notes),
        "units": {metric: UNITS[metric] for metric in costs.values},
        "layers": rows,
        "constants": {metric: costs.constant(metric) for metric in costs.values},
        "totals": {
            metric: {"value": float(costs.cost(bits, metric)), "unit": UNITS[metric]}
            for metric in costs.values
        },
        "missing": {k: v for k, v in costs.missing.items() if k not in costs.values},
        "uncounted": list(layers.uncounted),
    }
