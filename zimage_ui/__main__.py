"""`python -m zimage_ui` is the same as `zimage-ui`."""

from __future__ import annotations

import sys

from zimage_ui.cli import main

sys.exit(main())
