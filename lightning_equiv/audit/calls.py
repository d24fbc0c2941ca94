"""From data to calls of a network: what is measured, and the labels beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_equiv.symmetry.arguments import Arguments, parameters
from lightning_equiv.symmetry.batches import batches_of
from lightning_equiv.symmetry.call import BoundCall
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.symmetry.tree import Places, Tree, children, describe, held_at, is_graph, map_tensors
from lightning_equiv.wiring.call_recorder import CallRecorder
from lightning_equiv.wiring.dry_validation import dry_validation_step
from lightning_equiv.wiring.evaluation import evaluating
from lightning_equiv.wiring.network import find_network


@dataclass(frozen=True)
class AuditCall:
    """A call of the network, and the labels of its inputs.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        labels: shaped as the output, or class numbers; None where there are none.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tree = None

    def first(self, network: Callable[..., Any], symmetry: Symmetry, most: int) -> AuditCall:
        """The call with its first `most` inputs, or graphs."""
        call = symmetry.bind(network, self.args, self.kwargs)
        return self if call.num_inputs <= most else self.only(call, torch.arange(most))

    def only(self, call: BoundCall, chosen: Tensor) -> AuditCall:
        """The call with some of its inputs, or graphs, alone.

        Args:
            call: this one, bound.
            chosen: (k,) numbers of inputs.
        """
        args, kwargs = call.take(chosen).arguments()
        return AuditCall(args, kwargs, self._labels_of(call, chosen))

    def _labels_of(self, call: BoundCall, chosen: Tensor) -> Tree:
        """Their labels: rows of class numbers, or of what the symmetry says of outputs."""
        y = self.labels
        if y is None or (isinstance(y, Tensor) and not y.is_floating_point()):
            return y if y is None or not y.ndim else y[chosen.to(y.device)]
        try:
            return call.output(y).take(chosen).tree
        except ValueError:  # labels that do not fit: said where they are used
            return y

    def where(self, call: BoundCall, mask: Tensor) -> AuditCall | None:
        """The call with the inputs of a mask alone; None where there are none."""
        return self.only(call, mask.nonzero()[:, 0]) if bool(mask.any()) else None


def calls_of(
    model: Callable[..., Any],
    data: Any,
    symmetry: Symmetry,
    *,
    network: str | None = None,
    inputs: Callable[[Any], Any] | None = None,
    labels: Places | None = None,
) -> Iterator[AuditCall]:
    """The calls of a network on data, one or more a batch, on the network's device.

    Args:
        model: the network; or a LightningModule of which a sub-module is meant.
        data: a batch, a list or loader of batches, a data set, or a LightningDataModule.
        symmetry: whose `inputs` say which parts of a batch the network takes.
        network: dotted name of the sub-module that is meant: its calls in `validation_step` are recorded.
        inputs: batch -> what the network takes: a tuple of positional arguments, a dict of keywords, or the only
            argument.
        labels: where the labels of a batch are: a key, an index, a path, a function of the batch, or a dict of
            these by the names of the outputs.

    Raises:
        ValueError: a batch from which the network's arguments cannot be told; labels that are not there.
    """
    device = next((p.device for p in model.parameters()), None) if isinstance(model, nn.Module) else None
    for number, batch in enumerate(batches_of(data)):
        batch = _moved(model, batch, device)
        y = None if labels is None else held_at(batch, labels, "labels")
        if network is not None:
            yield from (AuditCall(args, kwargs, y) for args, kwargs in _recorded(model, network, batch, number))
            continue
        args, kwargs = _taken(model, batch, symmetry) if inputs is None else _as_arguments(inputs(batch))
        yield AuditCall(args, kwargs, y)


def _as_arguments(value: Any) -> Arguments:
    """A tuple is positional, a dict goes by name, anything else is the only argument."""
    if isinstance(value, tuple):
        return value, {}
    return ((), dict(value)) if isinstance(value, Mapping) else ((value,), {})


def _moved(model: Any, batch: Any, device: torch.device | None) -> Any:
    """The batch where the network is, by the module's own hooks where it has them."""
    if isinstance(model, L.LightningModule) and device is not None:
        batch = model.on_before_batch_transfer(batch, 0)
        batch = model.transfer_batch_to_device(batch, device, 0)
        return model.on_after_batch_transfer(batch, 0)
    if device is None:
        return batch
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    return map_tensors(lambda x: x.to(device), batch)


def _recorded(model: Any, name: str, batch: Any, number: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the named network is called with in the module's own validation step, which leaves no trace."""
    if not isinstance(model, L.LightningModule):
        raise TypeError(
            f"network={name!r} names a sub-module whose calls in `validation_step` are recorded, of a LightningModule, "
            f"got {type(model).__name__}: pass the network itself, or say what it takes by inputs=lambda batch: (...)"
        )
    recorder = CallRecorder(find_network(model, name))
    with ExitStack() as undo, evaluating(model), torch.no_grad():
        undo.callback(recorder.remove)
        recorder.start()
        dry_validation_step(model, batch, number, 0)
        calls = recorder.stop()
    if not calls:
        raise ValueError(
            f"network={name!r} was not called in `validation_step`: name the sub-module that is, one of "
            f"{[n for n, _ in model.named_children()]}, or say what it takes by inputs=lambda batch: (...)"
        )
    return [(call.args, call.kwargs) for call in calls]


def _taken(model: Any, batch: Any, symmetry: Symmetry) -> Arguments:
    """What the network takes of a batch, by what `inputs` of the symmetry names."""
    spec = symmetry.inputs
    if isinstance(spec, tuple):
        if is_graph(batch) or isinstance(batch, Mapping):
            raise ValueError(
                f"`inputs` of the symmetry go by position and a batch is {describe(batch)}: say what it takes, "
                "inputs=lambda batch: (batch['x'],)"
            )
        parts = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
        if len(parts) < len(spec):
            raise ValueError(
                f"the network takes {len(spec)} arguments, as the symmetry says, and a batch is {describe(batch)}: say "
                "what it takes, inputs=lambda batch: (...)"
            )
        return parts[: len(spec)], {}
    held = children(batch)
    if isinstance(batch, tuple | list) and len(batch) and children(batch[0]) is not None:
        return _taken(model, batch[0], symmetry)  # (inputs, labels)
    if held is None or isinstance(batch, tuple | list):
        raise ValueError(
            f"`inputs` of the symmetry go by name and a batch is {describe(batch)}: say what the network takes, "
            "inputs=lambda batch: {'x': batch[0]}"
        )
    names = parameters(model)
    if names and set(map(str, spec)) <= set(names):
        beside = {str(key) for key in (symmetry.index, symmetry.num_graphs) if key is not None} | {"edge_index"}
        wanted = [name for name in names if name in held and (name in spec or name in beside)]
        return (), {name: held[name] for name in wanted}
    return (batch,), {}
