"""From a click to the picture on screen, without the engine's share: `python -m bench.click [--clicks 50]`.

Starts `python app.py` with the fake generator in a process of its own and presses Generate in a real Chromium on
loopback. Of each press, on the page's own clock: from the click event's time stamp until the frame that holds the
decoded picture has been painted (the next animation frame, and the task after it). From that goes what the job's
account gives to the engine: queue + encode + sample + decode. The rest is ours: Gradio's way to the handler, the
worker's hand-over, encoding the file, the stream, fetching, decoding and painting. `presented_overhead_ms` is the same
until the browser's own element timing says that the frame was presented. Writes bench/results/click.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from bench.report import write_result
from bench.startup import answers, free_port

BAR_P50_MS = 60.0
ROOT = Path(__file__).parent.parent
START_S = 60.0
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
# `window.shown(click)` resolves with the times of the press that comes next.
WATCH = """async () => {
  const {state} = await import("/assets/store.js");
  const rendered = new Map();
  new PerformanceObserver((list) => list.getEntries().forEach((each) => rendered.set(each.url, each.renderTime)))
    .observe({type: "element"});
  const painted = () => new Promise((resolve) => requestAnimationFrame(() => {
    const {port1, port2} = new MessageChannel();
    port1.onmessage = () => resolve(performance.now());
    port2.postMessage(0);
  }));
  const once = (target, name) => new Promise((resolve) => {
    target.addEventListener(name, resolve, {once: true, capture: true});
  });
  const until = async (holds) => { while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5)); };
  const jobOf = (id) => [...state.jobs.values()].find((job) => job.pictures.some((each) => each.picture_id === id));
  window.press = async () => {
    performance.clearResourceTimings();
    const shown = once(document.querySelector("zi-canvas"), "picture-shown");
    const click = (await once(document.querySelector("#zi-generate"), "click")).timeStamp;
    const picture = (await shown).detail;
    const end = await painted();
    const asked = performance.getEntriesByType("resource").find((each) => each.name.includes("/gradio_api/run/"));
    const fetched = performance.getEntriesByType("resource").find((each) => each.name.endsWith(picture));
    await until(() => rendered.has(fetched.name) && jobOf(picture)?.timings_ms);
    const {queue, encode, sample, decode} = jobOf(picture).timings_ms;
    const engine = queue + encode + sample + decode;
    return {
      total_ms: end - click, engine_ms: engine, overhead_ms: end - click - engine,
      presented_overhead_ms: rendered.get(fetched.name) - click - engine,
      click_to_request_ms: asked.startTime - click, request_ms: asked.responseEnd - asked.startTime,
      fetch_ms: fetched.responseEnd - fetched.startTime, fetched_to_painted_ms: end - fetched.responseEnd,
    };
  };
}"""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The service with the fake generator, ready, in a process of its own; gives its address."""
    port = free_port()
    environment = {
        **os.environ, "ZIMAGE_PORT": str(port), "ZIMAGE_MODEL": "fake", "ZIMAGE_OUTPUT_DIR": str(folder / "outputs"),
    }  # fmt: skip
    server = subprocess.Popen([sys.executable, str(ROOT / "app.py")], env=environment)
    try:
        begun = time.perf_counter()
        while not answers(port, "/readyz"):
            if time.perf_counter() - begun > START_S or server.poll() is not None:
                raise SystemExit(f"the service did not become ready (exit {server.poll()})")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def press(page: Page) -> dict[str, float]:
    """One press of Generate, until its picture is on screen and its account is there."""
    page.evaluate("() => { window.pressed = window.press(); }")
    page.locator("#zi-generate").click()
    times: dict[str, float] = page.evaluate("() => window.pressed")
    page.wait_for_timeout(100)  # what follows a picture (the strip, the chart) is not the next press's
    return {name: round(value, 2) for name, value in times.items()}


def summary(values: list[float]) -> dict[str, float]:
    """Median, 90th percentile and worst."""
    return {
        "p50": round(statistics.median(values), 1),
        "p90": round(statistics.quantiles(values, n=10)[-1], 1),
        "max": round(max(values), 1),
    }


def measure(size: str, warmup: int, clicks: int) -> list[dict[str, float]]:
    """Press `warmup` + `clicks` times at `size` ("256x256"); gives the times of the last `clicks`."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("No Chromium is installed.")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(address)
        page.locator("html[data-zi-ready]").wait_for()
        page.locator(f"zi-choice[name=size] input[value='{size}']").check(force=True)
        page.locator("#zi-prompt textarea").fill("a harbour at dawn")
        page.evaluate(WATCH)
        presses = [press(page) for _ in range(warmup + clicks)]
        browser.close()
    return presses[warmup:]


def main() -> None:
    """Measure at each size, print the summary against the bar, store all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--sizes", nargs="*", default=["256x256", "512x512"])
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"bar_p50_ms": BAR_P50_MS, "clicks": arguments.clicks, "sizes": {}}
    for size in arguments.sizes:
        presses = measure(size, arguments.warmup, arguments.clicks)
        parts = {name: summary([each[name] for each in presses]) for name in presses[0]}
        figures["sizes"][size] = {"summary_ms": parts, "presses": presses}
        print(size, json.dumps(parts, indent=2))
    print(write_result("click", figures, "gradio", "fastapi", "uvicorn", "playwright", "pillow", "isal"))


if __name__ == "__main__":
    main()
