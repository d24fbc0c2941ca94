"""The page "energies and forces" as it stands, and the calls that it describes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from lightning_equiv import Symmetry, equivariance_error
from tests.helpers import global_seed, normal

PAGE = Path(__file__).parents[2] / "docs" / "energies_and_forces.md"


def test_the_code_of_the_page_runs() -> None:
    pytest.importorskip("torch_geometric")
    code, own_forward, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    quiet = "accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False"
    space: dict[str, Any] = {}
    with global_seed():
        exec(code.replace("L.Trainer(", f"L.Trainer({quiet}, enable_model_summary=False, "), space)
    logged = space["trainer"].callback_metrics
    assert list(space["errors"]) == ["total", "energy.0e", "forces.1o"]
    assert {"equivariance_error", "equivariance_error/forces.1o", "remul/equivariance_loss"} <= set(logged)
    assert 0.05 < float(space["errors"]["total"].mean()) < 3

    # the LightningModule's own forward, and a sub-module's
    with global_seed():
        exec(own_forward.replace("L.Trainer(", f"L.Trainer({quiet}, enable_model_summary=False, "), space)
    figures = space["trainer"].callback_metrics
    assert {"test_equivariance_error/energy.0e", "test_equivariance_error/forces.1o", "force_rmse"} <= set(figures)
    seeded = lambda: {"generator": torch.Generator().manual_seed(0)}  # noqa: E731
    model, batch = space["model"], space["batch"]
    parts = equivariance_error(model, batch, space["symmetry"], **space["inside"], **seeded())
    args = (batch.z, batch.pos, batch.edge_index, batch.batch)
    alone = equivariance_error(model.net, args, space["of_energy"], **seeded())
    torch.testing.assert_close(alone, parts["energy.0e"], rtol=1e-3, atol=1e-5)
    assert [callback.network for callback in space["callbacks"]] == ["net", "net"]

    # nothing is differentiated where a test runs in inference mode
    again = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        again.test(model, space["loader"])


def test_a_dict_as_mace_takes_it() -> None:
    """As the page declares it, on a network that keeps the symmetry."""
    *_, declared = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    symmetry = eval(declared, {"Symmetry": Symmetry})
    shapes = []

    def network(data: dict[str, Tensor]) -> dict[str, Any]:
        i, j = data["edge_index"]
        counts = data["ptr"].diff()
        cell = data["cell"].view(-1, 3, 3)[data["batch"][i]]  # of every edge
        shift = torch.einsum("ec,ecx->ex", data["unit_shifts"], cell)
        torch.testing.assert_close(shift, data["shifts"])
        d = data["positions"][j] - data["positions"][i] + shift
        energy = torch.zeros(len(counts), dtype=d.dtype).index_add(0, data["batch"][i], d.square().sum(-1))
        forces = torch.zeros_like(data["positions"]).index_add(0, i, d) * data["node_attrs"]
        shapes.append(len(energy))
        assert torch.equal(data["batch"], torch.arange(len(counts)).repeat_interleave(counts))
        return {"energy": energy, "forces": forces, "stress": None, "hidden": normal(3)}

    edges, batch = torch.tensor([[0, 1, 2, 3, 4, 4], [1, 0, 3, 2, 2, 3]]), torch.tensor([0, 0, 1, 1, 1])
    cell, unit = normal(6, 3), torch.randint(-1, 2, (6, 3), generator=torch.Generator().manual_seed(0)).double()
    data = {
        "positions": normal(5, 3, seed=1),
        "node_attrs": normal(5, 1, seed=2),
        "shifts": torch.einsum("ec,ecx->ex", unit, cell.view(2, 3, 3)[batch[edges[0]]]),
        "unit_shifts": unit,
        "cell": cell,
        "ptr": torch.tensor([0, 2, 5]),
        "edge_index": edges,
        "batch": batch,
    }
    errors = equivariance_error(network, (data,), symmetry, per_irrep=True, num_samples=4)
    assert list(errors) == ["total", "energy.0e", "forces.1o"]
    assert shapes == [2, 8]
    assert float(errors["total"].max()) < 1e-12
    bent = lambda data: network({**data, "node_attrs": data["node_attrs"] * data["positions"][:, :1]})  # noqa: E731
    assert float(equivariance_error(bent, (data,), symmetry).min()) > 0.01
