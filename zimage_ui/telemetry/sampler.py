"""The one thread that looks at the machine, and whoever wants to be told of it.

However many pages are open, the machine is read once per interval. A probe that raises is logged once for each kind of
error and read again next time; one that hangs holds up this thread alone: the newest snapshot then stays what it is,
and its `at_s` shows its age.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from zimage_ui.telemetry.history import History
from zimage_ui.telemetry.probe import Probe, Snapshot

_log = logging.getLogger(__name__)
_CLOSE_WAIT_S = 2.0

Wake = Callable[[], None]


class SamplerSubscription:
    """A wish to be woken for each new snapshot, as a context manager."""

    def __init__(self, sampler: Sampler, wake: Wake) -> None:
        self._sampler = sampler
        self.wake = wake

    @property
    def latest(self) -> Snapshot | None:
        """The newest snapshot; None before the first."""
        return self._sampler.latest

    def close(self) -> None:
        """Be woken no more; harmless when repeated."""
        self._sampler._forget(self)

    def __enter__(self) -> SamplerSubscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Sampler:
    """Reads a probe every `interval_s` seconds on a thread of its own.

    Args:
        probe: read on the sampler's thread only, and closed with it.
        interval_s: from the start of one reading to the start of the next.
    """

    def __init__(self, probe: Probe, interval_s: float) -> None:
        self.interval_s = interval_s
        self.history = History.covering(interval_s)
        self._probe = probe
        self._latest: Snapshot | None = None
        self._subscriptions: tuple[SamplerSubscription, ...] = ()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._known_errors: set[type[BaseException]] = set()
        self._thread = threading.Thread(target=self._run, name="telemetry-sampler", daemon=True)

    def start(self) -> None:
        """Take the first snapshot now, on the sampler's thread, and go on until `close`."""
        self._thread.start()

    @property
    def latest(self) -> Snapshot | None:
        """The newest snapshot; None before the first. Compare its `at_s` with the clock to see its age."""
        return self._latest

    def age_s(self) -> float | None:
        """Seconds since the newest snapshot; None before the first."""
        latest = self._latest
        return None if latest is None else max(0.0, time.monotonic() - latest.at_s)

    def subscribe(self, wake: Wake) -> SamplerSubscription:
        """Have `wake` called after each new snapshot until the subscription is closed.

        It is called on the sampler's thread: it must be short and must not raise.
        """
        subscription = SamplerSubscription(self, wake)
        with self._lock:
            self._subscriptions += (subscription,)
        return subscription

    def close(self) -> None:
        """Stop the thread and release the probe; a thread that hangs in the driver is left behind (it is a daemon)."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_CLOSE_WAIT_S)
        if self._thread.is_alive():
            _log.warning("The telemetry thread hangs in a sensor since %.0f s; leaving it behind.", self.age_s() or 0)
            return
        self._probe.close()

    def _forget(self, subscription: SamplerSubscription) -> None:
        with self._lock:
            self._subscriptions = tuple(kept for kept in self._subscriptions if kept is not subscription)

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._stop.is_set():
            self._round()
            # From start to start; after a reading that took longer than the interval the rhythm begins anew.
            due_s = max(due_s + self.interval_s, time.monotonic())
            self._stop.wait(due_s - time.monotonic())

    def _round(self) -> None:
        try:
            snapshot = self._probe.read()
        except Exception as error:  # noqa: BLE001 - whatever a sensor does, the watch goes on
            if type(error) not in self._known_errors:
                self._known_errors.add(type(error))
                _log.exception("The machine's sensors could not be read; trying again, without repeating this.")
            return
        self._latest = snapshot
        self.history.append(snapshot)
        for subscription in self._subscriptions:
            self._wake(subscription)

    def _wake(self, subscription: SamplerSubscription) -> None:
        try:
            subscription.wake()
        except RuntimeError:  # what an event loop that has been closed raises: nobody is there any more
            _log.debug("A subscriber could not be woken and is dropped.", exc_info=True)
            subscription.close()
