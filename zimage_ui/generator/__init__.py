"""The engine: a prompt becomes pixels. Callable without any UI; the only room that imports torch.

Importing this package (or `base` and `fake`) loads nothing heavy.
"""
