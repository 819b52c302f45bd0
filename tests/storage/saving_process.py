"""Saves pictures until it is killed: run by test_faults.py as a process of its own.

Arguments: the output folder, the number of the disk call to stop at, how many pictures of each format, the prompt.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from conftest import Listener

from zimage_ui.request import ImageFormat
from zimage_ui.storage import files
from zimage_ui.storage.library import Library
from zimage_ui.storage.saver import Saver

DISK_CALLS = ("open", "write", "fsync", "link", "unlink", "close", "mkdir")


class StoppingOs:
    """The `os` module, until its n-th call that touches the disk: there it says so, and waits to be killed."""

    def __init__(self, stop_at):
        self._left = stop_at

    def __getattr__(self, name):
        if name in DISK_CALLS:
            self._left -= 1
            if self._left == 0:
                tell("stopped", name)
                sys.stdin.read()
        return getattr(os, name)


def tell(*words):
    os.write(1, (" ".join(words) + "\n").encode())


def main(root, stop_at, rounds, prompt):
    folder = files.OutputFolder(Path(root))
    folder.prepare()
    library = Library(folder)
    files.os = StoppingOs(int(stop_at))
    saver = Saver(folder, library, threads=2, max_pending=4)
    saver.start()
    for image_format in [ImageFormat.JPEG, ImageFormat.PNG, ImageFormat.WEBP] * int(rounds):
        order = Listener().order(image_format, prompt, request={"negative_prompt": prompt})
        saver.submit(replace(order, on_saved=lambda picture: tell("saved", picture.picture_id)))
    saver.close(60)
    tell("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
