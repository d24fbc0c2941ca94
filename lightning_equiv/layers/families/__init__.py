"""Layer families: what the layers of one library say of their features."""

from lightning_equiv.layers.families.convolutions import Convolutions
from lightning_equiv.layers.families.e3nn import E3nn
from lightning_equiv.layers.families.escnn import Escnn
from lightning_equiv.layers.families.plain import Plain
from lightning_equiv.layers.families.vector_neurons import VectorNeurons
from lightning_equiv.layers.layer import LayerFamily

FAMILIES: tuple[LayerFamily, ...] = (  # the first that matches a module is its family
    E3nn(),
    Escnn(),
    VectorNeurons(),
    Convolutions(),
    Plain(),
)
