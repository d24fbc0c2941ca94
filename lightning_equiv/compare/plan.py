"""What all runs of a comparison have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from lightning_equiv.compare.made import Spec, hash_of, make, takes
from lightning_equiv.compare.way import Way, filled_in

Extra = Callable[[L.LightningModule, L.LightningDataModule], Mapping[str, float]]


@dataclass(frozen=True)
class Plan:
    """What all runs of a comparison have in common; it can be pickled where model, data and ways can.

    Attributes:
        model: makes a fresh LightningModule.
        data: makes the LightningDataModule; it is passed `seed` where it takes one.
        given: symmetry, network, target, layers, teacher.
        cases: name -> keyword arguments of the data.
        monitor, mode: what chooses the best weights on validation.
        judged: names of the figures that the ways are compared by; empty: all that test logged.
        trainer: further arguments of the Trainer.
        watch: further logged names whose curves are kept.
        extra: (module, data) -> further figures, after the test.
        draws, num_inputs: group elements for each input, and inputs of each test set, that errors are measured on.
        results: the file that runs are appended to; beside it lies what killed ones go on from.
        budget: what runs are given, for the fingerprint.
        save_every: seconds between two savings of a run.
        threads: of torch in one run; None leaves them.
        retry: do failed runs again.
    """

    model: Spec
    data: Spec
    given: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, Any]]
    monitor: str
    mode: str
    judged: Sequence[str]
    trainer: Mapping[str, Any]
    watch: Sequence[str]
    extra: Extra | None
    draws: int
    num_inputs: int
    results: Path
    budget: Mapping[str, Any]
    save_every: float
    threads: int | None
    retry: bool

    @property
    def folder(self) -> Path:
        """Where runs save what they go on from."""
        return self.results.with_name(f"{self.results.name}.runs")

    def make_data(self, case: str, seed: int) -> L.LightningDataModule:
        """The data of a case; the same for all ways of a seed."""
        own = {"seed": seed} if takes(self.data, "seed", "data") else {}
        return make(self.data, "data", **{**own, **self.cases[case]})

    def fingerprint(self, case: str) -> str:
        """Hash of what must be equal for runs to be compared."""
        shared = [self.data, self.cases[case], self.monitor, self.mode, self.trainer, self.budget]
        return hash_of([*shared, self.given.get("symmetry")])

    def fingerprint_of_way(self, way: Way) -> str:
        """Hash of what a way is."""
        model = self.model if way.model is None else way.model
        filled = [filled_in(callback, self.given) for callback in way.callbacks]
        return hash_of([model, way.callbacks, filled, way.settings])
