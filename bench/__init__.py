"""Comparisons with others, run by hand where the hardware is: `python -m bench.<name>`. Figures lie in results/."""
