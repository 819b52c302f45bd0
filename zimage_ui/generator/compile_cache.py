"""Where compilers keep what they made, so that a restart finds it: under the user's own cache folder.

torch, and the kernels of the extra `flash4`, keep it in the temporary folder otherwise, which a reboot empties and any
other user may fill. Their caches look at most of what the result depends on by themselves; each folder is for one
version of torch and of this program and one kind of GPU all the same, so that what is out of date can be told and goes.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

import torch

from zimage_ui import __version__
from zimage_ui.settings import choose_compile_cache, user_cache_folder

_log = logging.getLogger(__name__)

# Of folders for other versions or GPUs, those that were used last: for whoever goes back and forth between two.
_KEPT_FOLDERS = 3
_NAME_DIGITS = 12


def keep_compiled(device_name: str) -> Path | None:
    """Let torch's compilers, and those beside it, keep what they make for the GPU `device_name`.

    To be called before diffusers is imported: with it come the compilers, and they look for their folder at once.

    Returns:
        The folder, which may be one that the person chose (TORCHINDUCTOR_CACHE_DIR); None when there is no place for
        it: then torch takes its own, and the others keep nothing.
    """
    try:
        parent = user_cache_folder() / "compiled"
        folder = parent / folder_name(device_name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # torch reads pickles from it: nobody else may write
        folder.touch()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        used = choose_compile_cache(None)
        if used is None:
            _log.warning("compiled code is not kept for the next start: %s", error)
        return used
    used = choose_compile_cache(folder)
    if used != folder:
        return used
    _forget_others(parent, folder)
    _log.info("compiled code is kept in %s", folder)
    return folder


def folder_name(device_name: str) -> str:
    """The name of the folder for `device_name`, this torch and this program; of letters, digits, dots and hyphens."""
    key = f"{device_name}\n{torch.__version__}\n{torch.version.cuda}\n{__version__}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:_NAME_DIGITS]
    return f"zimage-ui-{__version__}-torch-{torch.__version__.partition('+')[0]}-{digest}"


def note_what_varies(fingerprint: str) -> None:
    """Let torch keep in mind which sizes turned out to vary, so that the next start compiles for all of them at once.

    Args:
        fingerprint: of the model, each of which is noted for itself: what is fixed in one would vary between two.
    """
    from torch.compiler import config

    if config.job_id is None:  # TORCH_COMPILE_JOB_ID
        config.job_id = f"zimage-ui-{fingerprint}"


def _forget_others(parent: Path, kept: Path) -> None:
    """Delete the folders beside `kept` that were not used for longest, if there are too many."""
    try:
        others = sorted((path for path in parent.iterdir() if path != kept), key=lambda path: -path.stat().st_mtime)
        for folder in others[_KEPT_FOLDERS:]:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:  # another process tidies, too
        _log.info("old compiled code stays for now: %s", error)
