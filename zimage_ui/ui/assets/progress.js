// Where a running job is, since when, and how long it may still take.

import { h, setText } from "./dom.js";
import { count, seconds } from "./format.js";
import { timedJobs } from "./store.js";
import { t } from "./texts.js";

const STATIONS = ["encode", "sample", "decode", "save"];
const TICK_MS = 100;

export class Progress {
  #tick = 0;
  #first = null; // {step, at} of the first sampling step that this page heard of
  #last = null;

  constructor() {
    this.now = h("strong.zi-now");
    this.clock = h("span.zi-number.zi-faint", { title: t("timings.elapsed.how") });
    this.fill = h("div.zi-progress-fill");
    this.stations = STATIONS.map((stage) => h("li", { dataset: { stage } }, t(`stage.${stage}`)));
    this.parts = [
      h("div.zi-facts", {}, this.now, h("span.zi-grow"), this.clock),
      h("div.zi-progress", { "aria-hidden": "true" }, this.fill),
      h("ol.zi-legend", {}, this.stations),
    ];
    this.#tick = setInterval(() => this.#showClock(), TICK_MS);
  }

  stop() {
    clearInterval(this.#tick);
  }

  follow(job) {
    this.job = job;
    if (job.stage === "sample" && job.step !== this.#last?.step) {
      this.#last = { step: job.step, at: job.heardAt };
      this.#first ??= this.#last;
    }
    setText(this.now, nowText(job));
    this.fill.style.setProperty("--zi-done", job.num_steps ? job.step / job.num_steps : 0);
    const reached = STATIONS.indexOf(job.stage);
    this.stations.forEach((station, place) => {
      station.dataset.state = place < reached ? "done" : place === reached ? "now" : "ahead";
    });
    this.#showClock();
  }

  #showClock() {
    const { job } = this;
    const elapsedMs = job.elapsed_ms + (performance.now() - job.heardAt);
    const parts = [t("timings.elapsed", { time: seconds(elapsedMs) })];
    const leftMs = job.phase === "queued" ? null : this.#remainingMs(performance.now());
    if (leftMs !== null) parts.push(t("timings.left", { time: seconds(leftMs) }));
    setText(this.clock, parts.join(" · "));
  }

  /** By the pace of the steps so far and what the last job of this shape took for the rest; null without both. */
  #remainingMs(now) {
    const { job } = this;
    const alike = timedJobs().reverse().find((other) => isAlike(job, other));
    const stepMs = this.#stepMs() ?? (alike ? alike.timings_ms.sample / alike.num_inference_steps : null);
    if (stepMs === null) return null;
    const stepsMs = stepMs * (job.num_steps - job.step);
    const restMs = alike ? alike.timings_ms.decode + alike.timings_ms.save : 0;
    const sinceMs = now - (this.#last?.at ?? job.heardAt);
    return Math.max(0, (job.stage === "encode" || job.stage === "sample" ? stepsMs : 0) + restMs - sinceMs);
  }

  #stepMs() {
    const steps = this.#last ? this.#last.step - this.#first.step : 0;
    return steps > 0 ? (this.#last.at - this.#first.at) / steps : null;
  }
}

function isAlike(job, other) {
  return other.width === job.width && other.height === job.height && other.num_images === job.num_images;
}

function nowText(job) {
  if (job.phase === "queued") return t("phase.queued");
  if (job.stage === "sample" && job.num_steps) {
    return t("timings.step", { step: count(job.step), steps: count(job.num_steps) });
  }
  return t(`doing.${job.stage ?? "encode"}`);
}
