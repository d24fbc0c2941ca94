"""Parameters that say whose they are."""

from __future__ import annotations

from torch import nn


class ParametersOf(list[nn.Parameter]):
    """The parameters of a network: a list for any optimizer, and the network for one that reads its layers.

    Examples:
        >>> parameters = ParametersOf(nn.Linear(2, 3))
        >>> len(parameters), parameters.network
        (2, Linear(in_features=2, out_features=3, bias=True))
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network.parameters())
        self.network = network
