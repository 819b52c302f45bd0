"""Amounts in words."""

from __future__ import annotations


def data_size(size_bytes: float) -> str:
    """An amount of data for people, in decimal units: "12.3 GB", "850 MB", "0 MB"."""
    if size_bytes >= 999.5e6:
        return f"{size_bytes / 1e9:.1f} GB"
    return f"{size_bytes / 1e6:.0f} MB"
