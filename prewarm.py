"""The supervisor hook: asks the running service to be warm, follows its way there, and exits with the verdict.

Weights, CUDA context and compiled graphs live in the process that serves, so no other process can warm them: the
service warms itself, and this script is how a supervisor (or a person) waits for it and hears why it failed.

Exit codes: 0 ready, 1 the service says that it failed, 2 no verdict within the time, 78 the settings cannot be used.
Standard library only; the service's own settings are read when no --url is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from typing import Any, TextIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

READY, FAILED, NO_VERDICT, BAD_SETTINGS = 0, 1, 2, 78
DEFAULT_TIMEOUT_S = 900.0
RETRY_S = 0.5
# The stream says something at least every 15 s; one that is silent for longer hangs and is opened anew.
STALL_S = 30.0
MAX_ANSWER_BYTES = 2**20

Readiness = dict[str, Any]

_pause = threading.Event()  # never set: its timed wait is the pause between two tries
# The service is on this machine or beside it: a proxy of the environment would only be in the way.
_opener = build_opener(ProxyHandler({}))


def say(line: str, stream: TextIO) -> None:
    """Write a line now, also into a pipe."""
    stream.write(line + "\n")
    stream.flush()


class Report:
    """Prints each new line once, with the seconds since the start."""

    def __init__(self) -> None:
        self._started_at_s = time.monotonic()
        self._last = ""

    def tell(self, line: str) -> None:
        """Print `line`, unless it is the one that was printed last."""
        if line != self._last:
            say(f"prewarm {time.monotonic() - self._started_at_s:6.1f} s  {line}", sys.stdout)
        self._last = line

    def progress(self, readiness: Readiness) -> None:
        """Print where the service stands."""
        percent = round(100 * float(readiness.get("progress", 0.0)))
        self.tell(f"{percent:3d} %  {readiness.get('phase', '?')}: {readiness.get('detail', '')}".rstrip(": "))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, follow the service, return the exit code."""
    parser = argparse.ArgumentParser(description="Wait until the running zimage-ui service is warm.")
    parser.add_argument("--url", help="where the service is; by default where ZIMAGE_HOST and ZIMAGE_PORT say")
    parser.add_argument(
        "--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="SECONDS", help="default %(default).0f"
    )
    options = parser.parse_args(arguments)
    try:
        url = checked(options.url).rstrip("/") if options.url else service_url()
    except ValueError as error:
        say(f"prewarm: {error}", sys.stderr)
        return BAD_SETTINGS
    return follow(url, options.timeout, Report())


def checked(url: str) -> str:
    """`url`, which has the form that an address of the service has.

    Raises:
        ValueError: it does not; says how it should look.
    """
    parts = urlsplit(url)
    try:
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, or too large a one
        usable = False
    if not usable:
        raise ValueError(f"--url is {url!r}; it must look like http://127.0.0.1:7860.")
    return url


def service_url() -> str:
    """Where the service of this machine listens, by its settings.

    Raises:
        ValueError: the settings cannot be used; says which and why.
    """
    from zimage_ui.errors import SettingsError
    from zimage_ui.settings import load_settings

    try:
        settings = load_settings()
    except SettingsError as error:
        raise ValueError(str(error)) from error
    if settings.port == 0:
        raise ValueError("The service takes any free port (ZIMAGE_PORT is 0): give its address with --url.")
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def follow(url: str, timeout_s: float, report: Report) -> int:
    """Report on the service at `url` until it is ready or failed, `timeout_s` seconds at the most; the exit code."""
    deadline_s = time.monotonic() + timeout_s
    report.tell(f"waiting for {url}")
    while time.monotonic() < deadline_s:
        try:
            for readiness in watch(url, deadline_s):
                report.progress(readiness)
                if readiness.get("ready"):
                    return READY
                if readiness.get("phase") == "failed":
                    return failed(readiness.get("error") or readiness.get("detail") or "no reason was given")
        except HTTPError as error:
            with error:
                if error.code < 500:
                    return failed(f"{error.url} answered {error.code} {error.reason}: is that zimage-ui?")
                report.tell(f"{error.url} answered {error.code} {error.reason}")
        except (OSError, HTTPException, ValueError) as error:
            report.tell(f"no answer yet ({getattr(error, 'reason', None) or error or type(error).__name__})")
        _pause.wait(min(RETRY_S, max(0.0, deadline_s - time.monotonic())))
    say(f"prewarm: {url} was not ready within {timeout_s:g} s", sys.stderr)
    return NO_VERDICT


def failed(reason: str) -> int:
    """Say why there will be no pictures; the exit code."""
    say(f"prewarm: failed: {reason}", sys.stderr)
    return FAILED


def watch(url: str, deadline_s: float) -> Iterator[Readiness]:
    """Ask for the warm-up, then give every state of it that the service tells, until `deadline_s` (monotonic).

    Raises:
        HTTPError: the service refused.
        OSError, HTTPException: it cannot be reached, went away or fell silent.
        ValueError: what it said is no readiness.
    """
    with _open(Request(f"{url}/api/warmup", data=b"", method="POST"), deadline_s) as answer:
        yield _as_readiness(answer.read(MAX_ANSWER_BYTES))
    with _open(Request(f"{url}/telemetry", headers={"Accept": "text/event-stream"}), deadline_s) as stream:
        for name, data in events(stream):
            if name == "readiness":
                yield _as_readiness(data)
            if time.monotonic() >= deadline_s:
                return


def events(lines: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """The (name, data) of each server-sent event in `lines`; ("", b"") for each comment, as a sign of life."""
    name, data = "", b""
    for line in lines:
        key, _, value = line.rstrip(b"\r\n").partition(b":")
        if key == b"event":
            name = value.strip().decode()
        elif key == b"data":
            data += value.strip()
        elif not line.strip():
            yield name, data
            name, data = "", b""


def _open(request: Request, deadline_s: float) -> HTTPResponse:
    timeout_s = min(STALL_S, max(0.1, deadline_s - time.monotonic()))
    response: HTTPResponse = _opener.open(request, timeout=timeout_s)
    return response


def _as_readiness(data: bytes) -> Readiness:
    readiness = json.loads(data)
    if not isinstance(readiness, dict) or "phase" not in readiness:
        raise ValueError(f"what answers says {data[:60]!r}, which is no readiness")
    return readiness


if __name__ == "__main__":
    sys.exit(main())
