"""A network as parts that run one after the other, each on a single tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq_env.errors import first_line
from haq_env.networks.modes import evaluation_mode
from haq_env.quantization.batchnorm import recalibrate_batchnorm, statistics, tracking_norms
from haq_env.quantization.fusion import follow
from haq_env.quantization.layers import QuantLayer
from haq_env.quantization.network import QuantizedNetwork

Passed = tuple[Tensor, dict[int, Tensor]]  # what comes out, and what was kept by cut


class NotAChain(ValueError):
    """A network cannot be cut into parts that run one after the other; the message says why."""


class Chain:
    """A network as parts that run one after the other, each on what the one before returns.

    There is a cut before every quantized layer at which a single tensor is alive, so a residual
    block is one part. The parts are made of the network's own modules.

    Args:
        network: its policy and its batch-norm statistics are left changed.
        images: a few, [N, ...], that the parts are compared with the whole network on.

    Attributes:
        parts: in execution order.
        rows: for each part, which rows of a policy decide what it returns, itself included.
        norms: for each part, its batch-norm layers that keep statistics.

    Raises:
        NotAChain: no cut is possible, or the parts do not do exactly what the network does.
    """

    def __init__(self, network: QuantizedNetwork, images: Tensor) -> None:
        self.network = network
        with evaluation_mode(network):
            graph, root = _traced(network)
            ends = _ends(graph, root)
            while True:
                self.parts = _cut(graph, root, ends)
                spoilt = self._overwritten(images)
                if not spoilt:
                    break
                ends = [end for index, end in enumerate(ends) if index not in spoilt]
            if not ends:
                raise NotAChain("no layer but the first starts from a single tensor")
            self.rows = self._rows()
            self.norms = [tracking_norms(part) for part in self.parts]
            seen = [id(norm) for norms in self.norms for norm in norms]
            if len(seen) != len(set(seen)):
                raise NotAChain("a batch-norm layer is used in several places")
            self._check(images)

    def start(self, images: Tensor) -> Tensor:
        """Lay images out as the network does."""
        return self.network.laid_out(images)

    def run(self, value: Tensor, first: int = 0) -> Iterator[Tensor]:
        """Yield what the parts return, from one of them on."""
        for part in self.parts[first:]:
            value = part(value)
            yield value

    def run_keeping(self, value: Tensor, first: int, cuts: Collection[int]) -> Passed:
        """Run the parts from one on, and let go of all results but those at some cuts."""
        kept: dict[int, Tensor] = {}
        result = value
        for number, result in enumerate(self.run(value, first), first):
            if number in cuts:
                kept[number] = result
        return result, kept

    def _rows(self) -> list[list[int]]:
        numbers = {name: row for row, name in enumerate(self.network.layers.names)}
        found: set[int] = set()
        rows = []
        for part in self.parts:
            found |= {numbers[m.slot.name] for m in part.modules() if isinstance(m, QuantLayer)}
            rows.append(sorted(found))
        return rows

    @torch.no_grad()
    def _overwritten(self, images: Tensor) -> set[int]:
        """Find cuts that are no single tensor (of `chunk`), or one that is changed later on."""
        # torch counts what is done to a tensor, for all tensors that share its memory together
        values = list(self.run(self.start(images)))[:-1]
        single = [torch.is_tensor(value) for value in values]
        if not all(single):
            return {index for index, is_one in enumerate(single) if not is_one}
        kept = [(value, value._version) for value in self.run(self.start(images))][:-1]
        return {index for index, (value, at) in enumerate(kept) if value._version != at}

    @torch.no_grad()
    def _check(self, images: Tensor) -> None:
        """Compare with the whole network, with and without statistics of its own."""
        network = self.network
        network.set_policy(network.probe(4))
        others = [b for b in network.module.buffers() if id(b) not in _buffers(self.norms)]
        before = [buffer.clone() for buffer in others]
        results: list[list[Tensor]] = []
        for whole in (True, False):
            module = network if whole else Tail(self, 0, [images])
            inputs = images if whole else torch.arange(1)
            recalibrate_batchnorm(module, inputs, len(inputs))
            output = network(images) if whole else [*self.run(self.start(images))][-1]
            stats = [s.clone() for norms in self.norms for norm in norms for s in statistics(norm)]
            results.append([output, *stats])
        if not all(map(_same, *results)):
            raise NotAChain("its parts, run one by one, answer otherwise than the network")
        if not all(map(_same, others, before)):
            raise NotAChain("it keeps a state besides its batch-norm statistics")


class Tail(nn.Module):
    """The parts from one on, called with the number of a batch in place of its images.

    So `recalibrate_batchnorm` can be used as it is: it looks for batch-norm layers in here, and
    calls this with one number after the other.
    """

    def __init__(
        self,
        chain: Chain,
        first: int,
        inputs: Sequence[Tensor],
        cuts: Collection[int] = (),
        keep: Callable[[dict[int, Tensor]], None] = lambda kept: None,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(chain.parts[first:])
        self._chain, self._first, self._inputs = chain, first, inputs
        self._cuts, self._keep = cuts, keep

    def forward(self, number: Tensor) -> Tensor:
        """Run the parts on the batch of this number, int64 [1]."""
        value = self._inputs[int(number)]
        if not self._first:
            value = self._chain.start(value)
        value, kept = self._chain.run_keeping(value, self._first, self._cuts)
        self._keep(kept)
        return value


# -- cutting a network -------------------------------------------------------------------------


def _traced(network: QuantizedNetwork) -> tuple[fx.Graph, nn.Module]:
    try:
        return follow(network.module)
    except Exception as error:  # whatever the network's own code raises on symbols
        raise NotAChain(f"torch.fx cannot follow it ({first_line(error)})") from error


def _ends(graph: fx.Graph, root: nn.Module) -> list[int]:
    """Return the numbers of the nodes after which the graph is cut, in order.

    Before each quantized layer it is the last node whose result is all that later nodes use; the
    later the cut, the less is left to do.
    """
    nodes = list(graph.nodes)
    number = {node: index for index, node in enumerate(nodes)}
    modules = dict(root.named_modules())
    ends: list[int] = []
    alive, latest, layers = 0, -1, 0  # last use of anything before; last possible cut
    for index, node in enumerate(nodes):
        if node.op == "call_module" and isinstance(modules.get(str(node.target)), QuantLayer):
            if layers and latest >= 0 and latest not in ends:
                ends.append(latest)
            layers += 1
        if node.op not in ("placeholder", "output", "get_attr") and alive <= index and layers:
            latest = index
        alive = max([alive, *(number[user] for user in node.users)])
    return ends


def _cut(graph: fx.Graph, root: nn.Module, ends: list[int]) -> list[nn.Module]:
    nodes = list(graph.nodes)
    source = next(node for node in nodes if node.op == "placeholder")
    result = nodes[-1].args[0]
    if not isinstance(result, fx.Node):
        raise NotAChain("its answer is not a single tensor")
    parts: list[nn.Module] = []
    begin = 0
    for end in [*ends, len(nodes) - 2]:
        part = fx.Graph()
        copies = {source: part.placeholder("value")}
        for node in nodes[begin : end + 1]:
            if node.op != "placeholder":
                copies[node] = part.node_copy(node, copies.__getitem__)
        source = nodes[end] if end in ends else result
        part.output(copies[source])
        parts.append(fx.GraphModule(root, part))
        begin = end + 1
    return parts


def _buffers(norms: list[list[_BatchNorm]]) -> set[int]:
    return {id(b) for part in norms for norm in part for b in norm.buffers()}


def _same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left, right)
