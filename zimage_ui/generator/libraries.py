"""diffusers and transformers, imported without what nothing here needs.

Where peft, torchvision and others of the kind are installed, both import them at once for features that the engine has
not: half as many modules again, and one that does not fit its torch would keep the engine from starting. And each lists
all installed packages to see what there is, which takes a second where files are slow to reach.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from zimage_ui.imports import collector_paused

# Each is optional to both, and they look for it before they import it.
COMPANIONS = ("bitsandbytes", "peft", "scipy", "sklearn", "torchao", "torchaudio", "torchvision")

_importing = threading.Lock()


@contextmanager
def imported_leanly() -> Iterator[None]:
    """While it is entered, `COMPANIONS` look as if they were not installed; what is imported already stays.

    To all threads, of which one at a time enters. diffusers keeps in mind what it found: in this process it does
    without them afterwards, too, and loads no LoRA by peft.
    """
    with _importing, collector_paused(), _without_companions(), _packages_listed_once():
        yield


@contextmanager
def _without_companions() -> Iterator[None]:
    hidden = [name for name in COMPANIONS if name not in sys.modules]
    # None is how Python's import system notes what is not to be found (language reference, "The module cache").
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, sys) is None:
                del sys.modules[name]


@contextmanager
def _packages_listed_once() -> Iterator[None]:
    listed = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = functools.cache(listed)
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = listed
