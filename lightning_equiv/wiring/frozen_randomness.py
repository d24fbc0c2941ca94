"""Run a network a second time in one step without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from lightning_equiv.wiring.evaluation import changes_by_itself, modes, restore_modes, set_flag
from lightning_equiv.wiring.in_place import version

Versions = dict[int, tuple[Tensor, int]]


def buffer_versions(network: nn.Module) -> Versions:
    """How often each buffer has been changed in place, to see later which ones a step moves."""
    return {id(x): (x, version(x)) for module in network.modules() for x in module._buffers.values() if x is not None}


@contextmanager
def frozen_randomness(network: nn.Module, before: Versions, evaluate: bool = False) -> Iterator[None]:
    """Inside, `network` trains, so that one that differentiates inside builds its graph, but leaves no trace.

    Dropout modules are in evaluation mode. Batch norms normalise by the batch, as in the first pass, and their running
    statistics stay; they are known by these statistics. Other modules whose buffers the first pass moved (a power
    iteration, an observer) are in evaluation mode. All of these buffers are copies. Every module is put back.

    Args:
        network: what runs.
        before: its buffers when the step began.
        evaluate: everything but batch norms is in evaluation mode, for a network that draws random numbers by itself.
    """
    kept = modes(network)
    tracked: list[_NormBase] = []
    buffers: list[tuple[nn.Module, dict[str, Tensor | None]]] = []
    norms: list[nn.Module] = []
    copies: dict[int, Tensor] = {}
    try:
        for module, training in kept:
            if not training:
                norm = moved = False
            elif isinstance(module, _NormBase):
                norm, moved = True, False
                if module.track_running_stats:
                    tracked.append(module)
                    module.track_running_stats = False
            else:
                norm = has_running_statistics(module)
                moved = any(x is not None and _moved(x, before) for x in module._buffers.values())
            if norm:
                norms.append(module)
            if moved or (norm and not isinstance(module, _NormBase)):
                buffers.append((module, dict(module._buffers)))
                for name, x in module._buffers.items():
                    if x is not None:
                        module._buffers[name] = copies.setdefault(id(x), x.clone())
            if training and not norm and (evaluate or moved or isinstance(module, _DropoutNd)):
                if changes_by_itself(module):
                    module.train(False)
                else:
                    set_flag(module, False)
        restore_modes((norm, True) for norm in norms)  # a module's own method may have reached them
        yield
    finally:
        restore_modes(kept)
        for norm_ in tracked:
            norm_.track_running_stats = True
        for module, held in buffers:
            for name, x in held.items():
                module._buffers[name] = x


@contextmanager
def buffers_kept(network: nn.Module, every: bool = False) -> Iterator[None]:
    """Inside, buffers that something has changed in place before are copies, which observers may move as they like.

    Args:
        network: whose buffers they are.
        every: copies of all, also those that have not moved so far, such as the statistics of a first training step.
    """
    held = [(module, name, x) for module in network.modules() for name, x in module._buffers.items() if x is not None]
    copies = {id(x): x.clone() for _, _, x in held if every or version(x)}
    try:
        for module, name, x in held:
            if id(x) in copies:
                module._buffers[name] = copies[id(x)]
        yield
    finally:
        for module, name, x in held:
            module._buffers[name] = x


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a module normalises by statistics that it keeps, whatever it is called."""
    if "track_running_stats" in module.__dict__:
        return True
    return any(name.startswith("running_") or name == "num_batches_tracked" for name in module._buffers)


def _moved(x: Tensor, before: Versions) -> bool:
    """Whether a buffer was changed, or put there, since then."""
    return id(x) not in before or version(x) != before[id(x)][1]
