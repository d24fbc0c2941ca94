"""Block-normalised Adam against loops written out, torch's Adam where nothing is normalised, and e3nn's own views."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet
from torch import Tensor, nn

from lightning_equiv import (
    RECM,
    REMUL,
    BlockNormalizedAdam,
    ConstraintRelaxation,
    LayerFamily,
    RegressionModule,
    Symmetry,
    equivariance_error,
)
from lightning_equiv.layers.choose import find_blocks
from lightning_equiv.layers.hidden_parameters import CONTAINER
from tests.helpers import close, default_dtype, global_seed, normal
from tests.strategies.test_escnn import REGULAR, SCALAR, R2Conv
from tests.strategies.toys import EachStep, Plain, loader, trainer, weights

IN, OUT = "2x0e+3x1o+1x0e+2x2e", "4x0e+2x1o+1x1e+5x2e"


class Everything(nn.Module):
    """A parameter of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = o3.Linear(IN, OUT, biases=True)
        self.product = o3.FullyConnectedTensorProduct("3x0e+2x1o", "1x0e+2x1o", "4x0e+2x1o")
        self.radial = FullyConnectedNet([4, 6, 2], torch.tanh)
        self.plain = nn.Linear(5, 3)
        self.convolution = nn.Conv2d(2, 3, 3)
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(5)
        self.scale = nn.Parameter(torch.full((1,), 2.0))
        self.unused = nn.Linear(2, 2)


def everything() -> Everything:
    with default_dtype(torch.float64), global_seed():
        return Everything()


def give_gradients(network: nn.Module, step: int) -> None:
    """Random ones, of other sizes in every parameter and step; none for what is unused."""
    for i, (name, p) in enumerate(network.named_parameters()):
        if not name.startswith("unused"):
            p.grad = normal(*p.shape, seed=100 * step + i, dtype=p.dtype) * 10.0 ** (i % 5 - 3)


def matrices_by_hand(network: Everything, values: dict[str, Tensor]) -> dict[str, list[np.ndarray]]:
    """Views of the matrices of every parameter that has any, from how e3nn and torch store them."""
    found: dict[str, list[np.ndarray]] = {}
    flat, start = values["linear.weight"].numpy(), 0
    for a in o3.Irreps(IN):  # e3nn's order: inputs outside, outputs inside
        for b in o3.Irreps(OUT):
            if a.ir == b.ir:
                found.setdefault("linear.weight", []).append(flat[start : start + a.mul * b.mul].reshape(a.mul, b.mul))
                start += a.mul * b.mul
    views = network.product.weight_views(values["product.weight"])
    found["product.weight"] = [view.flatten(0, 1).numpy() for view in views]  # (u, v, w): all that comes in against w
    for name in ("radial.layer0.weight", "radial.layer1.weight", "plain.weight"):
        found[name] = [values[name].numpy()]
    found["convolution.weight"] = [values["convolution.weight"].flatten(1).numpy()]
    return found


# ---- the update ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.99)])
def test_against_a_loop_in_numpy(betas: tuple[float, float], decay: float) -> None:
    network, lr, eps, (b1, b2) = everything(), 0.03, 1e-6, betas
    optimizer = BlockNormalizedAdam(network, lr, betas, eps, decay)
    W = {name: p.detach().clone().numpy() for name, p in network.named_parameters()}
    m, v = ({name: np.zeros_like(w) for name, w in W.items()} for _ in range(2))
    for t in range(1, 6):
        give_gradients(network, t)
        updates = {}
        for name, p in network.named_parameters():
            if p.grad is None:
                continue
            g = p.grad.numpy() + decay * W[name]
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            updates[name] = m[name] / (1 - b1**t) / (np.sqrt(v[name] / (1 - b2**t)) + eps)
        for matrices in matrices_by_hand(network, {k: torch.as_tensor(u) for k, u in updates.items()}).values():
            for U in matrices:
                U /= np.linalg.svd(U, compute_uv=False)[0]
        for name, U in updates.items():
            W[name] = W[name] - lr * U
        optimizer.step()
        for name, p in network.named_parameters():
            close(p.detach(), torch.as_tensor(W[name]), 1e-11)


def test_the_step_of_every_block_has_the_norm_lr_and_the_rest_is_adams_bit_for_bit() -> None:
    """Of weights that are 0 the step is not rounded."""
    network, twin, lr = everything(), everything(), 0.02
    for p in network.parameters():
        p.data.zero_()
    twin.load_state_dict(network.state_dict())
    ours, adams = BlockNormalizedAdam(network, lr), torch.optim.Adam(twin.parameters(), lr)
    give_gradients(network, 0)
    give_gradients(twin, 0)
    ours.step()
    adams.step()
    stepped = {name: p.detach() for name, p in network.named_parameters()}
    blocks = matrices_by_hand(network, stepped)
    for matrices in blocks.values():
        for matrix in matrices:
            assert abs(np.linalg.norm(matrix, 2) / lr - 1) < 1e-14
    rest = [name for name in stepped if name not in blocks]
    assert {"linear.bias", "plain.bias", "embedding.weight", "norm.weight", "scale"} <= {*rest}
    for step in range(1, 4):
        give_gradients(network, step)
        give_gradients(twin, step)
        ours.step()
        adams.step()
    for name in rest:
        assert torch.equal(network.get_parameter(name), twin.get_parameter(name)), name
    assert not torch.equal(network.plain.weight, twin.plain.weight)


def test_zero_gradients_leave_a_block_and_nan_stays_where_it_is() -> None:
    with default_dtype(torch.float64), global_seed():
        linear = o3.Linear(IN, OUT)
    before = [w.detach().clone() for w in linear.weight_views()]
    optimizer = BlockNormalizedAdam(linear, 0.1)
    linear.weight.grad = torch.ones_like(linear.weight)
    zero, *rest = linear.weight_views(linear.weight.grad)
    zero.zero_()
    optimizer.step()
    after = [w.detach().clone() for w in linear.weight_views()]
    assert torch.equal(after[0], before[0])
    for w, then in zip(after[1:], before[1:], strict=True):
        assert torch.isfinite(w).all()
        assert not torch.equal(w, then)
    rest[0][0, 0] = torch.nan
    optimizer.step()
    now = [w.detach() for w in linear.weight_views()]
    assert torch.isnan(now[1]).sum() == 1  # Adam's, and no error from the singular values
    assert all(torch.isfinite(w).all() for i, w in enumerate(now) if i != 1)


def test_half_precision_and_memory_that_is_not_in_a_row() -> None:
    matrix = nn.Linear(6, 4, bias=False).bfloat16()
    matrix.weight.data.zero_()
    matrix.weight.grad = normal(4, 6).bfloat16()
    BlockNormalizedAdam(matrix, 0.1).step()
    close(torch.linalg.matrix_norm(matrix.weight.double(), 2), torch.tensor(0.1), 1e-2)
    convolution = nn.Conv2d(4, 3, 3, bias=False).double()
    twin = copy.deepcopy(convolution)
    convolution.to(memory_format=torch.channels_last)
    for network in (convolution, twin):
        network.weight.grad = normal(*network.weight.shape)
        BlockNormalizedAdam(network, 0.1).step()
    assert not convolution.weight.is_contiguous()
    close(convolution.weight, twin.weight)


# ---- the blocks ------------------------------------------------------------------------------------------------------


def blocks_of(module: nn.Module) -> list[Tensor]:
    """The matrices that the family reads off `weight`, of a weight that counts."""
    flat = torch.arange(module.weight.numel())
    return [flat[s : s + r * c].view(r, c) for s, r, c in find_blocks(module)[module.weight]]


@pytest.mark.parametrize("biases", [False, True])
def test_the_blocks_of_linear_are_the_matrices_that_e3nn_multiplies_with(biases: bool) -> None:
    linear = o3.Linear(IN, OUT, biases=biases)
    paths = [i for i, path in enumerate(linear.instructions) if path.i_in != -1]
    views = [linear.weight_view_for_instruction(i, torch.arange(linear.weight_numel)) for i in paths]
    assert len(views) == 4  # two of 0e, one of 1o and one of 2e
    assert [b.tolist() for b in blocks_of(linear)] == [v.tolist() for v in views]


def test_the_blocks_of_tensor_products_are_the_weighted_paths_that_mix_channels() -> None:
    paths = [
        (0, 0, 0, "uvw", True),
        (1, 0, 1, "uvu", True),  # of single channels
        (0, 0, 0, "uvw", False),
        (1, 1, 0, "uvw", True),
    ]
    product = o3.TensorProduct("3x0e+2x1o", "2x0e+2x1o", "4x0e+2x1o", paths[1:2] + paths[:1] + paths[3:])
    first, *views = product.weight_views(torch.arange(product.weight_numel))
    assert first.shape == (2, 2)
    assert [b.tolist() for b in blocks_of(product)] == [v.flatten(0, 1).tolist() for v in views]
    unweighted = o3.TensorProduct("3x0e", "3x0e", "3x0e", [(0, 0, 0, "uuu", False), (0, 0, 0, "uuw", True)])
    assert [b.tolist() for b in blocks_of(unweighted)] == [torch.arange(9).view(3, 3).tolist()]


def test_weights_that_come_from_outside_are_no_parameters_and_e3nns_flat_ones_of_single_channels_no_blocks() -> None:
    outside = nn.Sequential(
        o3.Linear("2x0e", "2x0e", internal_weights=False),
        o3.FullyConnectedTensorProduct("2x0e", "1x0e", "2x0e", shared_weights=False),
        o3.TensorProduct("2x1o", "1x0e", "2x1o", [(0, 0, 0, "uvu", True)]),
        nn.Linear(2, 2),
    )
    assert list(find_blocks(outside)) == [outside[3].weight]


def test_vector_neurons_and_escnn() -> None:
    class VNLinear(nn.Module):
        in_channels, out_channels = 4, 5

        def __init__(self) -> None:
            super().__init__()
            self.map_to_feat = nn.Linear(4, 5, bias=False)

    (blocks,) = find_blocks(VNLinear()).values()
    assert blocks == [(0, 5, 4)]
    (blocks,) = find_blocks(R2Conv(SCALAR, REGULAR)).values()  # 12 and 1 channels
    assert blocks == [(0, 12, 9)]


def test_a_family_of_ones_own_says_its_blocks() -> None:
    class Halves(LayerFamily):
        def matches(self, module: nn.Module) -> bool:
            return isinstance(module, nn.Linear)

        def blocks(self, module: nn.Module, name: str, shape: torch.Size) -> Any:
            halves = super().blocks(module, name, shape)
            return [type(b)(start, b.rows // 2, b.columns) for b in halves for start in (0, b.rows * b.columns // 2)]

    linear = nn.Linear(3, 4, bias=False).double()
    linear.weight.data.zero_()
    linear.weight.grad = normal(4, 3)
    BlockNormalizedAdam(linear, 0.1, families=[Halves()]).step()
    for half in linear.weight.detach().chunk(2):
        close(torch.linalg.matrix_norm(half, 2), torch.tensor(0.1, dtype=torch.float64))


def test_a_compiled_network_has_the_same_blocks() -> None:
    network = everything()
    assert find_blocks(torch.compile(network)) == find_blocks(network)


# ---- as any optimizer ------------------------------------------------------------------------------------------------


def test_groups_have_their_own_rates_and_a_group_may_come_later() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)).double()
    groups = [{"params": network[0].parameters(), "lr": 0.2}, {"params": network[1].parameters()}]
    optimizer = BlockNormalizedAdam(groups, 0.1, network=network)
    optimizer.add_param_group({"params": network[2].parameters(), "lr": 0.3})
    schedule = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda _: 0.5)
    for factor in (1.0, 0.5):
        before = [layer.weight.detach().clone() for layer in network]
        give_gradients(network, 1)
        optimizer.step()
        schedule.step()
        for layer, w, lr in zip(network, before, (0.2, 0.1, 0.3), strict=True):
            close(torch.linalg.matrix_norm(layer.weight - w, 2), torch.tensor(lr * factor, dtype=torch.float64))


def test_a_closure_computes_gradients_and_its_loss_is_returned() -> None:
    linear = nn.Linear(3, 3)
    optimizer = BlockNormalizedAdam(linear)

    def closure() -> Tensor:
        loss = linear(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert linear.weight.grad is not None
    assert optimizer.state[linear.weight]["step"] == 1


@pytest.mark.parametrize("way", [lambda o: o, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_state_dict_copies_and_pickles_go_on_bit_for_bit(way: Callable[[Any], Any], tmp_path: Path) -> None:
    network = everything()
    optimizer = BlockNormalizedAdam(network, 0.1)
    for step in range(2):
        give_gradients(network, step)
        optimizer.step()
    torch.save([network.state_dict(), optimizer.state_dict()], tmp_path / "saved.pt")
    both = way({"network": network, "optimizer": optimizer})
    network, optimizer = both["network"], both["optimizer"]
    twin = everything()
    again = BlockNormalizedAdam(twin, 0.5)
    saved, state = torch.load(tmp_path / "saved.pt", weights_only=True)
    twin.load_state_dict(saved)
    again.load_state_dict(state)
    for step in range(2, 4):
        for one, its in ((network, optimizer), (twin, again)):
            give_gradients(one, step)
            its.step()
    assert torch.equal(weights(network), weights(twin))
    assert not torch.equal(weights(network), weights(everything()))


def test_the_gradients_of_a_scaler_are_unscaled_and_a_step_with_overflow_is_left_out() -> None:
    linear, twin = (nn.Linear(3, 3).double() for _ in range(2))
    twin.load_state_dict(linear.state_dict())
    optimizer, plain = BlockNormalizedAdam(linear, 0.1, eps=1e-2), BlockNormalizedAdam(twin, 0.1, eps=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x = normal(4, 3)
    scaler.scale(linear(x).square().mean()).backward()
    twin(x).square().mean().backward()
    scaler.step(optimizer)
    scaler.update()
    plain.step()
    close(linear.weight, twin.weight)
    linear.weight.grad[0, 0] = torch.inf
    scaler.step(optimizer)
    close(linear.weight, twin.weight)


# ---- in training -----------------------------------------------------------------------------------------------------


class Trained(Plain):
    """Trained by this optimizer, its rate decaying from step to step."""

    def configure_optimizers(self) -> Any:
        optimizer = BlockNormalizedAdam(self, lr=0.05)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = Trained(), Trained(), Trained()
    trainer(max_epochs=2, accumulate_grad_batches=2).fit(whole, loader())
    half = trainer(max_epochs=1, accumulate_grad_batches=2)
    half.fit(first, loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(max_epochs=2, accumulate_grad_batches=2).fit(second, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(weights(second), weights(whole))
    assert not torch.equal(weights(first), weights(whole))


def strategies() -> dict[str, Callable[[Symmetry], L.Callback]]:
    return {
        "REMUL": lambda s: REMUL(s, "net"),
        "ConstraintRelaxation": lambda s: ConstraintRelaxation(s, "net.*", "net", init_scale=0.5),
        "RECM": lambda s: RECM(s, "net.*", "net", target=1),
    }


@pytest.mark.parametrize("name", strategies())
def test_the_branches_of_strategies_are_blocks_too(name: str) -> None:
    symmetry = Symmetry("SO(3)", inputs="1o", outputs="1o", batch=("1o", "1o"))
    with global_seed():
        net = nn.Sequential(o3.Linear("1o", "8x1o+4x0e"), o3.Linear("8x1o+4x0e", "1o"))
    module = Trained(net)
    strategy, before, sizes = strategies()[name](symmetry), weights(module), []

    def look(run: L.Trainer) -> None:
        (optimizer,) = run.optimizers
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = dict(module.named_parameters())
        assert held == {id(p) for p in named.values()}
        branches = [p for n, p in named.items() if CONTAINER in n and p.ndim == 2]
        assert all(optimizer._blocks[p] == [(0, *p.shape)] for p in branches)
        sizes.append(len(branches))  # RECM has further weights than those of the branches

    trainer(EachStep(look), strategy).fit(module, loader())
    assert {min(size, 2) for size in sizes} == {0 if name == "REMUL" else 2}
    assert not torch.equal(weights(module)[: len(before)], before)
    if name != "RECM":  # which may leave layers relaxed
        x = normal(5, 3, dtype=torch.float32)
        assert equivariance_error(module.net, (x,), symmetry).mean() < 1e-5


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_from_the_command_line_and_by_symmetry_module() -> None:
    """`optimizer` of a SymmetryModule is called with parameters, which know their network."""
    module = RegressionModule(nn.Linear(3, 3), optimizer=BlockNormalizedAdam, lr=0.3)
    optimizer = module.configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert list(optimizer._blocks) == [module.net.weight]
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(RegressionModule, "model")
    config = {
        "class_path": "lightning_equiv.RegressionModule",
        "init_args": {
            "net": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 3}},
            "optimizer": {"class_path": "lightning_equiv.BlockNormalizedAdam", "init_args": {"betas": [0.5, 0.99]}},
        },
    }
    module = parser.instantiate_classes(parser.parse_object({"model": config})).model
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, BlockNormalizedAdam)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.99)
    assert list(optimizer._blocks) == [module.net.weight]


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    linear = nn.Linear(3, 3)
    with pytest.raises(TypeError, match=r"params=generator and network=None: write BlockNormalizedAdam\(self"):
        BlockNormalizedAdam(linear.parameters())
    with pytest.raises(ValueError, match="expected a network with matrices, got none in LayerNorm"):
        BlockNormalizedAdam(nn.LayerNorm(3))
    for wrong, error in (
        ({"lr": -1.0}, "expected lr to be a finite number of at least 0, got -1.0"),
        ({"lr": math.nan}, "expected lr"),
        ({"eps": -1e-8}, "expected eps"),
        ({"weight_decay": -1.0}, "expected weight_decay"),
        ({"betas": (0.9, 1.0)}, r"expected betas\[1\] to be a finite number of at least 0 and below 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=error):
            BlockNormalizedAdam(linear, **wrong)
    sharded = o3.Linear(IN, OUT)
    sharded.weight = nn.Parameter(sharded.weight.detach()[:7])
    with pytest.raises(ValueError, match=r"'weight' of 'a' \(Linear\) .* a shape \(7,\): parameters that are sharded"):
        BlockNormalizedAdam(nn.ModuleDict({"a": sharded}))
