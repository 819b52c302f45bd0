// <zi-machine>: what the machine is doing, as its sensors say; and how old that is.

import { config } from "./config.js";
import { h, Live, setText } from "./dom.js";
import { count, ms, seconds } from "./format.js";
import { GPU_METERS, HOST_METERS, Meters, recallMeters } from "./meters.js";
import { activeJobs, state } from "./store.js";
import { hasText, t } from "./texts.js";

const STALE_AFTER_MS = Math.max(3000, 2500 * config.telemetry_interval_s);
const CHECK_MS = 500;

let recalled = null; // the history that the lines have; each is taken once, as they go on from there

class Machine extends Live {
  static topics = ["history", "telemetry", "jobs"];
  #check = 0;
  #shown = null; // the last telemetry that went into the lines
  #gpus = new Map(); // index -> Gpu

  build() {
    this.#gpus.clear();
    this.age = h("span.zi-age", { title: t("machine.how") });
    this.devices = h("div");
    this.note = h("p.zi-note");
    this.hostName = h("h3");
    this.host = new Meters("host", HOST_METERS);
    this.counters = h("dl.zi-counters");
    this.append(
      h("div.zi-section-head", {}, h("h2", {}, t("machine")), this.age),
      this.devices, this.note, this.hostName, this.host.element, this.counters,
    );
    clearInterval(this.#check);
    this.#check = setInterval(() => this.#showAge(), CHECK_MS);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    clearInterval(this.#check);
  }

  update(topic) {
    const { history, telemetry } = state;
    if (history !== recalled) this.#recall(history);
    if (telemetry && topic !== "jobs") this.#showSensors(telemetry);
    if (telemetry) this.#showCounters(telemetry);
    this.#showAge();
  }

  #recall(history) {
    recalled = history;
    for (const { index, ...columns } of history.gpus) recallMeters(`gpu ${index}`, GPU_METERS, columns);
    recallMeters("host", HOST_METERS, history.host);
  }

  #showSensors(telemetry) {
    const { gpus, gpu_note: remark, host } = telemetry;
    const fresh = telemetry !== this.#shown;
    this.#shown = telemetry;
    if (gpus.length !== this.#gpus.size) this.#placeGpus(gpus);
    for (const gpu of gpus) this.#gpus.get(gpu.index)?.show(gpu, fresh);
    setText(this.note, gpus.length ? remark : `${t("machine.nogpu")} ${remark}`);
    this.note.hidden = !this.note.textContent;
    this.dataset.gpus = String(gpus.length);
    setText(this.hostName, [host.cpu_name, host.cpu_count && t("meter.cores", { n: count(host.cpu_count) })]
      .filter(Boolean).join(" · "));
    this.host.show(host, fresh);
  }

  #placeGpus(gpus) {
    this.#gpus = new Map(gpus.map((gpu) => [gpu.index, new Gpu(gpu, gpus.length > 1)]));
    this.devices.replaceChildren(...[...this.#gpus.values()].map((gpu) => gpu.element));
  }

  #showCounters({ embedding_cache: cache, pending_saves: pending }) {
    const asked = cache.hits + cache.misses;
    const shares = { hits: count(cache.hits), asked: count(asked) };
    const rows = {
      queue: count(activeJobs().filter((job) => job.phase === "queued").length),
      saves: count(pending),
      cache: asked ? t("counter.cache.value", shares) : t("counter.cache.unused"),
      saved: ms(cache.saved_ms),
    };
    this.counters.replaceChildren(...Object.entries(rows).map(([key, value]) =>
      h("div", { title: t(`counter.${key}.how`) }, h("dt", {}, t(`counter.${key}`)), h("dd.zi-number", {}, value)),
    ));
  }

  #showAge() {
    const { telemetry, telemetryHeardAt } = state;
    const ageMs = performance.now() - telemetryHeardAt + 1000 * (telemetry?.age_s ?? 0);
    const stale = telemetry !== null && ageMs > STALE_AFTER_MS;
    this.dataset.stale = String(stale);
    if (!telemetry) setText(this.age, t("machine.waiting"));
    else setText(this.age, stale ? t("machine.stale", { time: seconds(ageMs) }) : t("machine.live"));
  }
}

class Gpu {
  constructor({ index, name, driver }, several) {
    this.meters = new Meters(`gpu ${index}`, GPU_METERS);
    this.throttle = h("p.zi-throttle", { title: t("meter.throttle.how") });
    const title = driver && t("meter.driver", { version: driver });
    const heading = h("h3", { title }, several ? `${index}: ${name}` : name);
    this.element = h("div.zi-gpu", {}, heading, this.meters.element, this.throttle);
  }

  show(gpu, fresh) {
    this.meters.show(gpu, fresh);
    const reasons = gpu.throttle_reasons;
    this.throttle.dataset.kind = reasons?.length ? "held" : "free";
    setText(this.throttle, throttleText(reasons));
  }
}

function throttleText(reasons) {
  if (reasons === null) return t("throttle.unknown");
  if (!reasons.length) return t("throttle.free");
  return t("throttle.held", { reasons: reasons.map(reasonName).join(", ") });
}

function reasonName(reason) {
  const key = `throttle.${reason.replaceAll(" ", "_")}`;
  return hasText(key) ? t(key) : reason;
}

customElements.define("zi-machine", Machine);
