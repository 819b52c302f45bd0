"""`python app.py` starts the studio: settings -> runtime -> serve. The same as `zimage-ui serve`."""

from __future__ import annotations

import sys

from zimage_ui.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
