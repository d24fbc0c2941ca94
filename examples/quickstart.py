"""A network and its training as you have them, and one callback that makes the network nearly equivariant.

The training bodies are turned by at most 10 degrees, as those of the first test are; those of the second by 90 to 180.
Half a minute: python examples/quickstart.py
"""

import sys

import lightning as L
import torch
from torch import nn

from lightning_equiv import REMUL, EquivarianceError, Invariant, Symmetry
from lightning_equiv.datasets import GravityDataModule


class Network(nn.Module):
    def __init__(self, bodies=4, width=256):
        super().__init__()
        wide = [nn.Linear(7 * bodies, width), nn.GELU(), nn.Linear(width, width), nn.GELU()]
        self.layers = nn.Sequential(*wide, nn.Linear(width, 3 * bodies))

    def forward(self, masses, positions, velocities):
        x = torch.cat([masses[..., None], positions, velocities], dim=-1).flatten(1)
        return positions + self.layers(x).view_as(positions)


class Training(L.LightningModule):  # nothing in it knows of a symmetry
    def __init__(self):
        super().__init__()
        self.net = Network()

    def training_step(self, batch, batch_idx, dataloader_idx=0):
        predicted = self.net(batch["masses"], batch["positions"], batch["velocities"])
        return nn.functional.mse_loss(predicted, batch["targets"])

    def test_step(self, *args):
        self.log("mse", self.training_step(*args))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


inputs = {"masses": Invariant(), "positions": "1o", "velocities": "1o"}  # how a rotation moves what the network takes,
symmetry = Symmetry("SO(3)", inputs=inputs, outputs="1o")  # and what it returns
data = GravityDataModule(train_size=100, test_size=1000, steps_per_epoch=100)
quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
for way, callbacks in {"plain": [], "REMUL": [REMUL(symmetry, "net", weight=10.0, target="targets")]}.items():
    L.seed_everything(0, verbose=False)
    module, error = Training(), EquivarianceError(symmetry)
    samples = {name: data.samples("ood")[name] for name in inputs}
    before = error(module.net, **samples)
    steps = 2 if "--fast-dev-run" in sys.argv else 2000
    trainer = L.Trainer(max_steps=steps, max_epochs=20, limit_val_batches=0, callbacks=callbacks, **quiet)
    trainer.fit(module, data)
    mse, turned = (mse for test in trainer.test(module, data, verbose=False) for mse in test.values())
    after = error(module.net, **samples)
    print(f"{way}: test MSE {mse:.4f}, turned further {turned:.4f}; equivariance error {before:.2f}, then {after:.2f}")
