"""Placeholder."""

from lightning_equiv.compare.records import Record


class Comparison:
    """Placeholder."""

    def __init__(self, records: list[Record], reference: str = "plain", title: str = "") -> None:
        self.records = records
