"""symmetry_report: which symmetry do my data have, and where is it broken?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv._checks import check_number
from lightning_equiv._random import derived_generator
from lightning_equiv.discovery.candidates import Candidate, about, candidates_of, has_axes
from lightning_equiv.discovery.canonical import angle_between, canonical_sample, kept_axis
from lightning_equiv.discovery.conditional_test import conditional_test, task_test, turn_back
from lightning_equiv.discovery.exact_test import exact_test, halves, holm
from lightning_equiv.discovery.findings import Finding
from lightning_equiv.discovery.orbits import Features, called, moved_features, orbits_of
from lightning_equiv.discovery.power import least_share
from lightning_equiv.discovery.result import SymmetryReport
from lightning_equiv.discovery.sample import Sample, sample_of
from lightning_equiv.groups.group import Group
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.evaluation import evaluating

_WITNESSES = ("features", "mlp")
_SAME_AXIS = 15.0  # degrees
_MEASURED = 128  # inputs of the network


def symmetry_report(
    data: Any,
    candidates: Symmetry | Sequence[Symmetry | str | Group],
    labels: Any = None,
    *,
    witness: str | Features = "features",
    draws: int = 999,
    level: float = 0.01,
    network: Callable[..., Any] | None = None,
    groups: Any = None,
    inputs: Callable[[Any], Any] | None = None,
    num_inputs: int = 5000,
    seed: int = 0,
) -> SymmetryReport:
    r"""Which symmetry do these data have, and where is it broken: in the inputs, or in how labels depend on them?

        S1   g x ~ x                        the inputs stand in no preferred orientation
        S2   p(g y | g x) = p(y | x)        the labels turn along: an equivariant predictor can be as good as any
        S3   (g x, g y) ~ (x, y)            both

    For each group of a chain, small to large: T1, an exact test of S1 and S3 (a witness that one half of the data train
    to tell inputs from moved ones, tested on the other half against copies that Haar elements have moved); T3, an
    approximate test of S2 for inputs that are not symmetric (labels turned back by the input's orientation, against
    that orientation, given the shape); T2, whether knowing the orientation helps a small learner. p-values are
    corrected for the number of groups (Holm), and what T1 would have found is simulated.

    Args:
        data: a batch, a list or loader of batches, a data set, or a LightningDataModule, of which the training set is
            taken. Inputs must be independent.
        candidates: a Symmetry, whose `inputs` and `outputs` say how elements move the inputs and the labels: its group
            and the subgroups with a name are tested (rotations about x, y, z and about the axis that the data keep
            best; inversion and reflections). Or a list, of a Symmetry and others or names of groups, as it is.
        labels: where labels are in a batch: a key, an index, a path, a function, or a dict of these by the outputs
            that they are labels of; or the labels themselves.
        witness: "features" (moments, pooled images, a linear score), "mlp" (a small network on them), or a function of
            what the network takes that returns features (inputs, k), such as a pretrained backbone.
        draws: of T1 and T3.
        level: of the tests; T3 is too liberal at .05.
        network: whose equivariance error under each group is measured beside.
        groups: which inputs belong together, the frames of one trajectory or conformers of one molecule: numbers
            (inputs,), or where they are in a batch. One element then moves all of a group, and none is split.
        inputs: batch -> what is tested, where the symmetry's `inputs` do not tell.
        num_inputs: at most so many, at random.
        seed: of halves, witness, elements and draws. The order of the data does not matter.

    Returns:
        A report with `findings`, `kept`, `advice`, `print()`, `save(path)`, `as_dict()`.

    Raises:
        TypeError: candidates without a Symmetry.
        ValueError: fewer than 20 independent inputs, labels that are all equal, a group that is not compact, too few
            draws for the level.

    Examples:
        >>> from lightning_equiv import Invariant, Symmetry
        >>> from lightning_equiv.datasets import charged_dataset
        >>> data = charged_dataset(200, steps=100, field=20.0)  # a strong field along z
        >>> spec = {"charges": Invariant(), "positions": "1o", "velocities": "1o"}
        >>> report = symmetry_report(data, Symmetry("SO(3)", inputs=spec, outputs="1o"), labels="targets")
        >>> print(report.conclusion)
        SO(3) is broken in the labels, SO(2) about z is kept.

    Reference:
        @article{chiu2023nonparametric,
          title={Non-parametric Hypothesis Tests for Distributional Group Symmetry},
          author={Chiu, Kenny and Bloem-Reddy, Benjamin},
          journal={arXiv preprint arXiv:2307.15834},
          year={2023}
        }

        @inproceedings{lawrence2026augment,
          title={To Augment or Not to Augment? Diagnosing Distributional Symmetry Breaking},
          author={Lawrence, Hannah and Hofgard, Elyssa and Portilheiro, Vasco and Chen, Yuxuan and Smidt, Tess and
                  Walters, Robin},
          booktitle={International Conference on Learning Representations},
          year={2026}
        }

        @article{shah2020hardness,
          title={The Hardness of Conditional Independence Testing and the Generalised Covariance Measure},
          author={Shah, Rajen D. and Peters, Jonas},
          journal={The Annals of Statistics},
          year={2020}
        }
    """
    start = time.perf_counter()
    check_number("draws", draws, least=19, whole=True)
    check_number("level", level, above=0, below=1)
    check_number("num_inputs", num_inputs, least=20, whole=True)
    if not callable(witness) and witness not in _WITNESSES:
        raise ValueError(f"expected witness to be one of {_WITNESSES} or a function, got {witness!r}")
    symmetry, chain = candidates_of(candidates)
    sample = sample_of(data, symmetry, labels, groups, inputs, num_inputs)
    chain, notes = _with_kept_axis(sample, symmetry, chain, isinstance(candidates, Symmetry), witness, seed)
    if level * (draws + 1) < len(chain):
        raise ValueError(
            f"with {draws} draws no p-value is below {1 / (draws + 1):.2g}, and {len(chain)} groups need one of "
            f"{level / len(chain):.2g} at level {level}: write draws={round(len(chain) / level) - 1}"
        )
    tested = [_tested(sample, c, witness, draws, level / len(chain), network, seed) for c in chain]
    findings = _corrected(tested, level)
    named = [f for f in findings if f.candidate.axis is None or f.candidate.name[-1] in "xyz"]
    known = any(f.candidate.axis is not None and f.verdict == "kept" for f in named)
    if isinstance(candidates, Symmetry) and (known or findings[-1].verdict == "kept"):
        findings = named  # the axis that was looked for is of no interest then
    return SymmetryReport(
        findings=tuple(findings),
        num_inputs=sample.num_inputs,
        num_units=sample.num_units,
        settings={
            "witness": witness if isinstance(witness, str) else getattr(witness, "__name__", type(witness).__name__),
            "draws": draws,
            "level": level,
            "seed": seed,
            "seconds": round(time.perf_counter() - start, 1),
        },
        notes=(*sample.notes, *notes),
    )


def _classes(sample: Sample) -> int | None:
    """How many classes the labels are numbers of."""
    if sample.labels is None:
        return None
    whole = [t.x for t in sample.labels.tensors if not t.x.is_floating_point() and t.representation.trivial]
    return None if not whole else int(max(int(x.max()) for x in whole)) + 1


def _features(witness: str | Features) -> Features | None:
    return None if isinstance(witness, str) else witness


def _with_kept_axis(
    sample: Sample, symmetry: Symmetry, chain: list[Candidate], automatic: bool, witness: str | Features, seed: int
) -> tuple[list[Candidate], list[str]]:
    """The chain with rotations about the axis that the training half keeps best, unless it is x, y or z."""
    if not automatic or not has_axes(symmetry) or callable(witness):
        return chain, []
    classes = _classes(sample)
    orbits = orbits_of(sample, chain[-1], classes, None, seed)
    axis = kept_axis(sample, orbits.table, halves(sample.num_units, seed)[0], classes)
    if min(angle_between(axis, e) for e in torch.eye(3, dtype=axis.dtype)) < _SAME_AXIS:
        return chain, []
    place = 1 + max(i for i, c in enumerate(chain) if c.kind == "axis")
    return [*chain[:place], about(symmetry, axis), *chain[place:]], []


def _tested(
    sample: Sample,
    candidate: Candidate,
    witness: str | Features,
    draws: int,
    level: float,
    network: Callable[..., Any] | None,
    seed: int,
) -> Finding:
    """All tests of one group, not yet corrected for the number of groups."""
    classes, own = _classes(sample), _features(witness)
    kind = witness if isinstance(witness, str) else "features"
    orbits = orbits_of(sample, candidate, classes, own, seed)
    if not bool((orbits.table[:, :1] != orbits.table).any()):
        raise ValueError(
            f"elements of {candidate.name} move none of the features of the data, so that nothing can be tested: say "
            "in `inputs` what they move ('1o' for vectors), or give a witness with features that change"
        )
    inputs = exact_test(orbits.of_inputs(), witness=kind, draws=draws, seed=seed, key=f"{candidate.name} inputs")
    joint = turned = None
    if sample.labels is not None:
        joint = exact_test(orbits.table, witness=kind, draws=draws, seed=seed, key=f"{candidate.name} joint")
        turned = turn_back(sample, candidate, classes, seed)
    conditional = None if turned is None else conditional_test(turned, candidate, draws, seed)
    task = None if turned is None else task_test(turned, candidate, seed)
    canonical, _ = moved_features(canonical_sample(sample, candidate, seed), None, 1, classes, own)
    counts = torch.bincount(sample.units)[:, None]
    means = torch.zeros(sample.num_units, canonical.shape[-1], dtype=canonical.dtype)
    means = means.index_add(0, sample.units, canonical[0]) / counts
    share = least_share(orbits.of_inputs(), means[:, : orbits.alone], level, seed)
    error = None if network is None else _network_error(network, sample, candidate, seed)
    return Finding(candidate, inputs, inputs.p, joint, None, conditional, None, task, share, error, level)


def _corrected(tested: list[Finding], level: float) -> list[Finding]:
    """With p-values corrected for the number of groups, statement by statement."""
    inputs = holm([f.inputs.p for f in tested])
    joint = iter(holm([f.joint.p for f in tested if f.joint is not None]))
    conditional = iter(holm([f.conditional.p for f in tested if f.conditional is not None]))
    return [
        replace(
            f,
            inputs_p=p,
            joint_p=None if f.joint is None else next(joint),
            conditional_p=None if f.conditional is None else next(conditional),
            level=level,
        )
        for f, p in zip(tested, inputs, strict=True)
    ]


def _network_error(network: Callable[..., Any], sample: Sample, candidate: Candidate, seed: int) -> float:
    """sqrt( E |f(g x) - g f(x)|^2 / E |f(x)|^2 ) over one element for each input."""
    kept = torch.arange(min(_MEASURED, sample.num_inputs))
    call = sample.call.take(kept)
    g = candidate.draw(len(kept), derived_generator("network", seed, candidate.name))
    module = network if isinstance(network, nn.Module) else nn.Identity()
    with evaluating(module), torch.no_grad():
        f_x = called(network, *call.arguments())
        f_gx = called(network, *call.move(g))
    moved = call.output(call.move_output(g, f_x))
    squares: list[Tensor] = []
    for name, (a, b) in call.output(f_gx).pairs(moved).items():
        squares.append(torch.stack([(a - b).double().square().sum(), b.double().square().sum()]))
        del name
    total = torch.stack(squares).sum(0)
    return float((total[0] / total[1].clamp_min(1e-300)).sqrt())
