"""Tells which parameters a tensor was made with, from its graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch

__all__ = ["Compiled", "parameters_behind"]

_NODES = 64
"""Nodes of the graph that are looked at: rotary embeddings and norms of queries take about twenty."""


class Compiled(Exception):
    """The tensor comes out of a compiled graph."""


def parameters_behind(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The parameters it depends on, the nearest first: the matrices, then the others, such as biases and scales of norms.

    Of a linear layer on a 2-D input the bias, the input and the weight are about as near: the last counts as nearer.

    Raises:
        Compiled: the graph has a compiled part.
    """
    if tensor.grad_fn is None:
        yield tensor
        return
    waiting, met, others = deque([tensor.grad_fn]), {tensor.grad_fn}, []
    for _ in range(_NODES):
        if not waiting:
            break
        node = waiting.popleft()
        if node.name().startswith("CompiledFunction"):
            raise Compiled
        variable = getattr(node, "variable", None)
        if variable is not None:
            if variable.dim() > 1:
                yield variable
            else:
                others.append(variable)
        for following, _ in reversed(node.next_functions):
            if following is not None and following not in met:
                met.add(following)
                waiting.append(following)
    yield from others
