"""Amounts in words."""

import pytest

from zimage_ui.generator.units import data_size


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 MB"),
        (1, "0 MB"),
        (850e6, "850 MB"),
        (999.4e6, "999 MB"),
        (999.6e6, "1.0 GB"),
        (12_309_817_472, "12.3 GB"),
    ],
)
def test_data_sizes(size_bytes, words):
    assert data_size(size_bytes) == words
