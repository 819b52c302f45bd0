"""The local studio for Z-Image-Turbo: fast pictures, and for each one where every millisecond went."""

__version__ = "0.1.0"
