"""The examples' networks commute with what they say, exactly, and every weight of theirs learns."""

from __future__ import annotations

import copy

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv import E3, Invariant, IrrepsTensor, Point, Symmetry, equivariance_error
from lightning_equiv.networks.c4_cnn import C4CNN, C4Conv, C4Lift
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing, linear, steered
from lightning_equiv.networks.egnn import EGNN
from lightning_equiv.networks.segnn import SEGNN, harmonics
from lightning_equiv.networks.vector_neurons import (
    VectorNeuronClassifier,
    VNBatchNorm,
    VNLeakyReLU,
    VNLinear,
    one_sided,
)
from lightning_equiv.representations.image import Image

TOLERANCE = 1e-10

PARTICLES = {
    "e3nn": lambda **k: E3nnMessagePassing("8x0e+8x1o", 2, **k),
    "e3nn, uneven": lambda **k: E3nnMessagePassing("4x0e+7x1o", 3, **k),
    "egnn": lambda **k: EGNN(16, 2, **k),
    "segnn": lambda **k: SEGNN("3x0e+4x1o", 2, **k),
}
CLOUDS = {
    "edges": lambda: VectorNeuronClassifier(5, 8, num_neighbours=6),
    "moments": lambda: VectorNeuronClassifier(5, 8, num_neighbours=0),
    "deeper": lambda: VectorNeuronClassifier(5, 4, num_neighbours=0, num_layers=5, head=7),
}


def particles(n: int, generator: torch.Generator, b: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    x, v = torch.randn(2, b, n, 3, generator=generator, dtype=torch.float64)
    return torch.randint(2, (b, n), generator=generator).double() * 2 - 1, x, v / 2


def trained(network: nn.Module, *args: Tensor) -> nn.Module:
    """A few steps away from the initial weights, in float64, in evaluation mode; every weight has a gradient."""
    network = network.double()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        output = network(*args)
        (output - torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).square().mean().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        optimizer.step()
    return network.eval()


def error(network: nn.Module, args: tuple[Tensor, ...], symmetry: Symmetry) -> float:
    return float(equivariance_error(network, args, symmetry, num_samples=6).max())


@pytest.mark.parametrize("n", [2, 5, 12])  # 12: more than the neighbours of a complete graph
@pytest.mark.parametrize("name", PARTICLES)
class TestParticles:
    """Networks on charged particles."""

    def test_euclidean(self, name: str, n: int, generator: torch.Generator) -> None:
        args = particles(n, generator)
        network = trained(PARTICLES[name](), *args)
        # the displacement, which a large translation cannot hide
        moved = Displacement(network)
        translated = (args[0], args[1] + torch.randn(6, 1, 3, dtype=torch.float64, generator=generator), args[2])
        torch.testing.assert_close(moved(*translated), moved(*args), rtol=0, atol=TOLERANCE)
        assert error(moved, args, Symmetry("O(3)", (Invariant(), "1o", "1o"), "1o")) < TOLERANCE
        assert error(network, args, Symmetry(E3(), (Invariant(), Point(), "1o"), Point())) < TOLERANCE
        assert error(moved, args, Symmetry("O(3)", (Invariant(), "1o", Invariant()), "1o")) > 1e-3

    def test_permutation(self, name: str, n: int, generator: torch.Generator) -> None:
        args = particles(n, generator)
        network = trained(PARTICLES[name](), *args)
        order = torch.randperm(n, generator=generator)
        output = network(*(x[:, order] for x in args))
        torch.testing.assert_close(output, network(*args)[:, order], rtol=0, atol=TOLERANCE)

    def test_samples_do_not_meet(self, name: str, n: int, generator: torch.Generator) -> None:
        args = particles(n, generator)
        network = trained(PARTICLES[name](), *args)
        alone = torch.cat([network(*(x[i : i + 1] for x in args)) for i in range(6)])
        torch.testing.assert_close(network(*args), alone, rtol=0, atol=TOLERANCE)

    def test_neighbours_only(self, name: str, n: int, generator: torch.Generator) -> None:
        args = particles(n, generator)
        far = PARTICLES[name](num_neighbours=max(n - 1, 1)).double()
        near = PARTICLES[name](num_neighbours=1).double()
        near.load_state_dict(far.state_dict())
        assert torch.equal(near(*args), far(*args)) == (n == 2)


class Displacement(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, charges: Tensor, positions: Tensor, velocities: Tensor) -> Tensor:
        return self.network(charges, positions, velocities) - positions


class TestE3nn:
    """The linear maps of the message passing network."""

    def test_every_tensor_product_is_a_factored_one(self, generator: torch.Generator) -> None:
        factored = linear(3, 4, "7x0e+2x1o").double()  # 5 scalars, 2 lengths along Y_1, 2 vectors
        product = o3.FullyConnectedTensorProduct("3x0e+4x1o", "1x0e+1x1o", "5x0e+2x1o").double()
        s, v, y = (torch.randn(40, *shape, generator=generator, dtype=torch.float64) for shape in ((3,), (4, 3), (3,)))
        target = product(torch.cat([s, v.flatten(1)], 1), torch.cat([torch.ones_like(s[:, :1]), y], 1)).flatten()

        columns = []
        for weight in torch.eye(factored.weight_numel, dtype=torch.float64):
            with torch.no_grad():
                factored.weight.copy_(weight)
                f = steered(factored, s, v, y)
            vectors = f[:, 7:].view(-1, 2, 3) + f[:, 5:7, None] * y[:, None]
            columns.append(torch.cat([f[:, :5], vectors.flatten(1)], 1).flatten())
        basis = torch.stack(columns, -1)
        weights = torch.linalg.lstsq(basis, target[:, None]).solution
        torch.testing.assert_close(basis @ weights, target[:, None], rtol=0, atol=TOLERANCE)

    def test_maps_are_named_and_equivariant(self, generator: torch.Generator) -> None:
        network = E3nnMessagePassing("8x0e+4x1o", 2).double()
        maps = {name: m for name, m in network.named_modules() if isinstance(m, o3.Linear)}
        each = ("message", "message_out", "update", "out", "shift")
        assert set(maps) == {"embed", *(f"layers.{i}.{name}" for i in range(2) for name in each)}
        assert sum(p.numel() for m in maps.values() for p in m.parameters()) == sum(
            p.numel() for p in network.parameters()
        )
        for m in maps.values():
            x = torch.randn(10, m.irreps_in.dim, generator=generator, dtype=torch.float64)
            symmetry = Symmetry("O(3)", IrrepsTensor(str(m.irreps_in)), IrrepsTensor(str(m.irreps_out)))
            assert error(m, (x,), symmetry) < TOLERANCE

    def test_a_hook_can_add_a_branch(self, generator: torch.Generator) -> None:
        args = particles(5, generator)
        network = E3nnMessagePassing("8x0e+4x1o", 2).double()
        before = network(*args)
        m = network.layers[0].update
        w = torch.randn(m.irreps_out.dim, m.irreps_in.dim, generator=generator, dtype=torch.float64)
        handle = m.register_forward_hook(lambda module, inputs, output: output + inputs[0] @ w.T)
        symmetry = Symmetry("O(3)", (Invariant(), "1o", "1o"), "1o")
        assert error(network, args, symmetry) > 1e-3
        handle.remove()
        assert torch.equal(network(*args), before)

    def test_copies_and_keys(self) -> None:
        network = E3nnMessagePassing("8x0e+4x1o", 2)
        assert "centres" not in network.state_dict()
        again = copy.deepcopy(network)
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))

    @pytest.mark.parametrize("hidden", ["8x0e", "8x1o", "8x0e+8x1e", "4x0e+4x1o+2x2e"])
    def test_other_irreps_are_refused(self, hidden: str) -> None:
        with pytest.raises(ValueError, match="hidden must be made of 0e and 1o"):
            E3nnMessagePassing(hidden)


class TestSEGNN:
    """The formulas of its docstring, edge by edge; size of the published network."""

    def test_a_layer_is_a_sum_over_edges(self, generator: torch.Generator) -> None:
        layer = SEGNN("3x0e+4x1o", 1).double().layers[0]
        with torch.no_grad():
            for gate in layer.gates:
                gate.bias.normal_(generator=generator)
        f, x, v = (torch.randn(4, size, generator=generator, dtype=torch.float64) for size in (15, 3, 3))
        j = torch.tensor([[1, 2], [3, 0], [1, 3], [0, 1]])
        edges = torch.randn(4, 2, 2, generator=generator, dtype=torch.float64)

        def gated(g: nn.Module, h: Tensor) -> Tensor:
            s = torch.nn.functional.silu(h[:3] + g.bias[:3])
            vectors = [torch.sigmoid(h[3 + c] + g.bias[3 + c]) * h[7 + 3 * c : 10 + 3 * c] for c in range(4)]
            return torch.cat([s, *vectors])

        expected = []
        for i in range(4):
            m = torch.zeros(15, dtype=torch.float64)
            for k in range(2):
                y = harmonics(x[i] - x[j[i, k]])
                first = layer.message_1(torch.cat([f[i], f[j[i, k]], edges[i, k]]), y)
                m = m + gated(layer.gates[1], layer.message_2(gated(layer.gates[0], first), y))
            y = harmonics(v[i])
            expected.append(f[i] + layer.update_2(gated(layer.gates[2], layer.update_1(torch.cat([f[i], m]), y)), y))
        along = harmonics(x[:, None] - x[j])
        torch.testing.assert_close(layer(f, j, edges, along, harmonics(v)), torch.stack(expected))

    def test_harmonics(self) -> None:
        """1 and sqrt(3) x / |x|."""
        x = torch.tensor([[0.0, 3.0, 4.0], [0.0, 0.0, 0.0]])
        expected = torch.tensor([[1.0, 0.0, 0.6 * 3**0.5, 0.8 * 3**0.5], [1.0, 0.0, 0.0, 0.0]])
        torch.testing.assert_close(harmonics(x), expected)

    def test_other_irreps_are_refused(self) -> None:
        with pytest.raises(ValueError, match="hidden must be made of 0e and 1o"):
            SEGNN("8x0e+8x1e")


class TestVectorNeurons:
    """Layers and classifier."""

    @pytest.mark.parametrize("shape", [(), (7,), (7, 4)])
    @pytest.mark.parametrize("layer", [VNLinear(6, 4), VNLeakyReLU(6), VNBatchNorm(6)], ids=lambda m: type(m).__name__)
    def test_layers(self, layer: nn.Module, shape: tuple[int, ...], generator: torch.Generator) -> None:
        x = torch.randn(5, 6, 3, *shape, generator=generator, dtype=torch.float64)
        vectors = IrrepsTensor("1o", dim=2)
        assert error(copy.deepcopy(layer).double(), (x,), Symmetry("O(3)", vectors, vectors)) < TOLERANCE

    def test_linear_is_a_loop_over_channels(self, generator: torch.Generator) -> None:
        layer = VNLinear(3, 2)
        x = torch.randn(4, 3, 3, 5, generator=generator)
        expected = torch.stack([sum(layer.weight[o, c] * x[:, c] for c in range(3)) for o in range(2)], dim=1)
        torch.testing.assert_close(layer(x), expected)
        assert (layer.in_channels, layer.out_channels, layer.weight.shape) == (3, 2, (2, 3))

    def test_relu_leaves_nothing_against_the_direction(self, generator: torch.Generator) -> None:
        layer = VNLeakyReLU(4, slope=0.0).double()
        x = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
        d = layer.direction(x)
        before, after = (x * d).sum(2), (layer(x) * d).sum(2)
        torch.testing.assert_close(after, before.clamp(min=0), rtol=0, atol=1e-5)  # the 1e-6 under the division
        assert isinstance(layer.direction, VNLinear)

    def test_one_sided(self, generator: torch.Generator) -> None:
        """Where the direction is the input itself, or against it, all points are on one side; otherwise on both."""
        layer = VNLeakyReLU(4).double()
        module = torch.nn.Module()
        module.net = layer
        points = torch.randn(3, 4, 3, 50, generator=generator, dtype=torch.float64)

        class Data:
            def test_dataloader(self) -> list[list[dict[str, Tensor]]]:
                return [[{"points": points}]]

        turned = torch.eye(4).roll(1, 0)  # another channel as direction
        for weight, expected in ((torch.eye(4), 1.0), (-torch.eye(4), 1.0), (turned, 0.0)):
            with torch.no_grad():
                layer.direction.weight.copy_(weight)
            assert one_sided(module, Data()) == {"one_sided": expected}

    def test_batch_norm(self, generator: torch.Generator) -> None:
        layer = VNBatchNorm(4).double()
        x = 7 * torch.randn(50, 4, 3, 20, generator=generator, dtype=torch.float64)
        y = layer(x)
        torch.testing.assert_close(y.square().mean((0, 2, 3)), torch.ones(4).double())
        for _ in range(100):
            layer(x)
        torch.testing.assert_close(layer.eval()(x), y, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", CLOUDS)
    def test_classifier(self, name: str, generator: torch.Generator) -> None:
        points = torch.randn(6, 20, 3, generator=generator, dtype=torch.float64)
        network = trained(CLOUDS[name](), points)
        logits = network(points)
        assert logits.shape == (6, 5)
        assert error(network, (points,), Symmetry(E3(), Point(), Invariant())) < TOLERANCE
        order = torch.randperm(20, generator=generator)
        torch.testing.assert_close(network(points[:, order]), logits, rtol=0, atol=TOLERANCE)
        assert (network(points * points.new_tensor([1, 1, 2])) - logits).abs().max() > 1e-3
        assert (logits[0] - logits[1]).abs().max() > 1e-3


class TestC4:
    """Group convolutions."""

    @pytest.mark.parametrize("size", [8, 12])
    def test_classifier(self, size: int, generator: torch.Generator) -> None:
        images = torch.randn(6, 1, size, size, generator=generator, dtype=torch.float64)
        network = trained(C4CNN(10, 6), images)
        logits = network(images)
        assert logits.shape == (6, 10)
        assert error(network, (images,), Symmetry("C4", Image(), Invariant())) < TOLERANCE
        for dims in ((-1,), (-2,)):  # a mirror image is something else
            assert (network(images.flip(dims)) - logits).abs().max() > 1e-3

    def test_layers_turn_maps_and_orientations(self, generator: torch.Generator) -> None:
        lift, conv = C4Lift(2, 3).double(), C4Conv(3, 5).double()
        x = torch.randn(2, 2, 7, 7, generator=generator, dtype=torch.float64)
        for r in range(4):
            turned = lift(x.rot90(r, (-2, -1)))
            expected = lift(x).rot90(r, (-2, -1)).roll(r, dims=2)
            torch.testing.assert_close(turned, expected, rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(
                conv(turned), conv(lift(x)).rot90(r, (-2, -1)).roll(r, dims=2), rtol=0, atol=TOLERANCE
            )

    def test_group_convolution_is_the_sum(self, generator: torch.Generator) -> None:
        conv = C4Conv(2, 3).double()
        x = torch.randn(2, 2, 4, 6, 6, generator=generator, dtype=torch.float64)
        y = conv(x)
        for r in range(4):
            expected = sum(
                nn.functional.conv2d(x[:, :, s], conv.weight[:, :, (s - r) % 4].rot90(r, (-2, -1)), padding=1)
                for s in range(4)
            )
            torch.testing.assert_close(y[:, :, r], expected + conv.bias[:, None, None])

    @pytest.mark.parametrize("shape", [(7, 7), (8, 6)])
    def test_other_sizes_are_refused(self, shape: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match="square with an even side"):
            C4CNN()(torch.zeros(1, 1, *shape))
