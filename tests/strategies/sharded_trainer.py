"""A process of a Trainer with ModelParallelStrategy (FSDP2) on CPUs; torchrun starts two of them.

python -m torch.distributed.run --nproc-per-node 2 -m tests.strategies.sharded_trainer FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from tests.strategies.cases import CASES
from tests.strategies.toys import LR, Plain, Rows

RANKS, STEPS, ROWS = 2, 3, 4  # rows of a rank in a step
LOSSES = {name: case for name, case in CASES.items() if case.loss is not None or case.name == "remul, to a tolerance"}


class Sharded(Plain):
    """The user's regression, whose network shards its layers when Lightning asks for the model."""

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for layer in (self.net[0], self.net[2], self.net):
            fully_shard(layer, mesh=mesh)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LR)


def loader(rank: int) -> DataLoader[tuple[Tensor, Tensor]]:
    data = Rows(STEPS * RANKS * ROWS)
    sampler = DistributedSampler(data, RANKS, rank, shuffle=False)
    return DataLoader(data, batch_size=ROWS, sampler=sampler)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, case in LOSSES.items():
        module = Sharded()
        strategy = ModelParallelStrategy(data_parallel_size=RANKS, tensor_parallel_size=1, process_group_backend="gloo")
        trainer = L.Trainer(
            strategy=strategy, accelerator="cpu", devices=RANKS, max_epochs=1, callbacks=[case.make()], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, loader(int(trainer.global_rank)))
        kept = sum(p._local_tensor.numel() for p in module.parameters())
        whole = torch.cat([p.full_tensor().detach().double().flatten() for p in module.parameters()])
        torch.save({"weights": whole, "kept": kept}, folder / f"{name} {trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
