"""What follows from the findings: which group to declare, and which way of training goes with it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_equiv.discovery.findings import Finding
from lightning_equiv.metrics.subgroups import direction_name


def conclusion(findings: Sequence[Finding]) -> str:
    """The answer in a line."""
    whole = findings[-1]
    if whole.verdict == "kept":
        return f"{whole.name}: no deviation found."
    if whole.on_labels == "broken":
        kept = largest_kept(findings)
        rest = f", {kept.name} is kept" if kept else ", and no subgroup that was tested is known to be kept"
        return f"{whole.name} is broken in the labels{rest}."
    if whole.on_inputs == "broken":
        labels = {
            None: "",
            "kept": ", the labels turn along",
            "not told apart": ", and whether labels turn along cannot be told",
        }.get(whole.on_labels, "")
        return f"{whole.name} is broken in the inputs{labels}."
    return f"{whole.name}: the sample is too small to tell."


def largest_kept(findings: Sequence[Finding]) -> Finding | None:
    """The largest group of the chain that is kept by inputs and labels; else by the labels alone."""
    kept = [f for f in findings[:-1] if f.verdict == "kept"]
    found = kept or [f for f in findings[:-1] if f.on_labels == "kept"]
    return found[-1] if found else None


def advice_of(findings: Sequence[Finding], num_units: int) -> list[str]:
    """What to do, in sentences."""
    whole = findings[-1]
    name, kept = whole.name, largest_kept(findings)
    said: list[str] = []
    if whole.verdict == "not told apart" and whole.on_inputs != "broken":
        return [
            f"{num_units} independent inputs are too few: not even half of them in one orientation would have been "
            f"found with probability 0.8. Collect more before deciding for or against {name}."
        ]
    if whole.verdict == "kept":
        said.append(
            f"Declare {name!r}: a strict network, or augmentation, which is free here. Nothing proves a symmetry: a "
            f"share of {whole.share:.0%} of the inputs in one orientation would have been found."
        )
    elif whole.on_labels == "broken":
        said.append(_broken_labels(whole, kept))
    elif whole.on_inputs == "broken":
        said.append(_broken_inputs(whole, kept))
        if kept is not None and kept.verdict == "kept":
            said.append(f"Also the inputs keep {kept.name}: augmentation by it leaves the data's law as it is.")
    return said


def _broken_labels(whole: Finding, kept: Finding | None) -> str:
    name, test = whole.name, whole.conditional
    why = ""
    seen = whole.conditional_p is not None and whole.conditional_p <= whole.level
    if seen and test is not None and test.field is not None:
        why = f" The labels are drawn along {_rounded(test.field.tolist())}, as by a field in this direction."
    first = f"The labels break {name}: what is predicted does not turn along with the inputs.{why}"
    if kept is not None:
        declare = f"declare {kept.candidate.declare!r}" if kept.candidate.declare else _without_a_name(kept)
        first += f" They keep {kept.name}: {declare}."
    return (
        f"{first} A strict {name} network would have an error that no data remove: relax it by RECM or ACE, weigh the "
        "symmetry by REMUL, or make the network's input larger by what breaks it (the field as an input)."
    )


def _without_a_name(kept: Finding) -> str:
    if kept.candidate.axis is not None:
        return f"turn the data so that {direction_name(kept.candidate.axis)} becomes z, and declare 'SO(2)'"
    return "declare it by a representation of your own"


def _broken_inputs(whole: Finding, kept: Finding | None) -> str:
    name = whole.name
    said = f"The inputs stand in preferred orientations ({name}), as they were recorded or prepared."
    if name == "O(3)" and kept is not None and kept.name == "SO(3)" and kept.on_inputs == "kept":
        said = (
            "The inputs stand in any pose, but are of one hand (O(3) is broken, SO(3) is not): chiral molecules, or "
            "numbered atoms that never change places, such as the two hydrogens of a CH2 group."
        )
    if whole.on_labels is None:
        return said + " Without labels nothing is said of a prediction: give `labels`."
    if whole.on_labels == "not told apart":
        few = f"{said} These data do not tell whether labels turn along:"
        if whole.candidate.group.space_dim != 3:
            return f"{few} that is for you to say. If they do, declare {name!r} (a strict network, or augmentation)."
        return (
            f"{few} that is a question of physics. Energies and forces of a free molecule do: declare {name!r} then, a "
            "strict network or augmentation. Where a surface or a field is there, they do not."
        )
    said += f" The labels turn along: the best predictor may be strict, declare {name!r}."
    task = whole.task
    if task is not None and task.high < 1:
        said += (
            f" But a plain network gets the pose for free, and here it is of use (error {task.ratio:.2f} of that "
            "without it, in a small learner)"
        )
        said += ": augmentation takes that away. Augment where test orientations differ from those of training."
    else:
        said += " The pose was of no use to a small learner, so that augmentation costs nothing that was measured; it"
        said += " helps where test orientations differ from those of training."
    return said


def _rounded(direction: list[float]) -> str:
    return f"({', '.join(f'{c + 0.0:.2f}' for c in direction)})"
