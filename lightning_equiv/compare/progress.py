"""How far a comparison is: which run of how many, and how long the rest will take."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from tqdm import tqdm

_FORMAT = "{desc} |{bar:20}| {elapsed} so far, {remaining} left"


class Progress:
    """One line, such as "run 3 of 16: REMUL, seed 1 |##        | 01:40 so far, 10:50 left".

    The time left is the mean time of the runs that were done here times the number of those that are left, so it is
    there from the second run on; runs that were found in the results count as done and took no time.

    Args:
        total: number of runs.
        shown: on stderr; False prints nothing.
    """

    def __init__(self, total: int, shown: bool) -> None:
        self._bar: Any = tqdm(total=total, bar_format=_FORMAT, smoothing=0, disable=not shown, dynamic_ncols=True)
        self.total, self.done = total, 0
        self.now("")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    @property
    def line(self) -> str:
        """What is printed."""
        return str(self._bar)

    def now(self, what: str) -> None:
        """Say what is being done.

        Args:
            what: the run that has begun, or that has just ended where several train at a time.
        """
        number = f"run {min(self.done + 1, self.total)} of {self.total}"
        self._bar.set_description_str(f"{number}: {what}" if what else number)

    def found(self, number: int) -> None:
        """So many runs are in the results already."""
        self.done += number
        if not self._bar.disable:
            self._bar.initial += number
            self._bar.n += number
        self.now("")

    def finished(self, what: str = "") -> None:
        """One run more is done.

        Args:
            what: to say of it, where the next one does not say itself.
        """
        self.done += 1
        self._bar.update(1)
        self.now(what)

    def say(self, message: str) -> None:
        """A line of its own."""
        self._bar.write(message)
