import pytest

from lightning_equiv.report.html import to_html
from tests.report.example import example


@pytest.fixture(scope="session")
def document():
    return example()


@pytest.fixture(scope="session")
def page(document):
    """Drawn once: pictures take most of the time."""
    return to_html(document)
