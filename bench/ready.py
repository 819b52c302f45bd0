"""A generator made ready and nothing else: `python -m bench.ready FOLDER [--mode exact]`.

Prints "imported", "loaded", "ready" and "prepared" (all that the service prepares while it is idle) as it gets there;
`bench.engine` reads the clock at these lines. How long each part of the preparation took is logged to stderr. With
--sizes the model's profile has these sizes alone: the first picture is ready at the same time, the rest sooner.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from bench.command import parse_size
from bench.players import MODES, profiles_of


def main(arguments: list[str] | None = None) -> None:
    """Import, load, warm, prepare the rest."""
    parser = argparse.ArgumentParser(prog="python -m bench.ready", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", choices=MODES, default=next(iter(MODES)))
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[], metavar="WIDTHxHEIGHT")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(relativeCreated)6d ms  %(message)s")
    logging.getLogger("zimage_ui").setLevel(logging.INFO)
    from zimage_ui.generator.zimage import ZImageGenerator, import_engine

    import_engine()
    print("imported", flush=True)
    generator = ZImageGenerator(str(options.folder), embedding_cache_bytes=2**20, **MODES[options.mode])
    with profiles_of(options.sizes):
        generator.load(lambda _: None)
    print("loaded", flush=True)
    generator.warmup(lambda _: None)
    print("ready", flush=True)
    while generator.prepare_next(lambda _: None):
        pass
    print("prepared", flush=True)


if __name__ == "__main__":
    main()
