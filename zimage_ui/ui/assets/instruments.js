// <zi-instruments>: what the machine is doing, where the time of the last jobs went, what is loaded and why so.

import { config } from "./config.js";
import { h, Live, setText } from "./dom.js";
import { count, gib, memorySize, ms, percent, seconds, withUnit } from "./format.js";
import { Sparkline } from "./sparkline.js";
import { activeJobs, model, state } from "./store.js";
import { hasText, t } from "./texts.js";

const STALE_AFTER_MS = Math.max(3000, 2500 * config.telemetry_interval_s);
const CHECK_MS = 500;

// Each: key of its words, value of a reading, how it is written, top of its scale.
const GPU_METERS = [
  ["utilization", (gpu) => gpu.utilization_pct, (gpu) => percent(gpu.utilization_pct), () => 100],
  ["clock", (gpu) => gpu.sm_clock_mhz, (gpu) => withUnit(gpu.sm_clock_mhz, "MHz"), (gpu) => gpu.max_sm_clock_mhz],
  ["temperature", (gpu) => gpu.temperature_c, (gpu) => withUnit(gpu.temperature_c, "°C"), () => 100],
  ["power", (gpu) => gpu.power_w, (gpu) => ofMost(gpu.power_w, gpu.power_limit_w, "W", count), (gpu) => gpu.power_limit_w],
  ["memory", (gpu) => gpu.nvml_used_bytes, (gpu) => ofMost(gpu.nvml_used_bytes, gpu.nvml_total_bytes, "GiB", gib), (gpu) => gpu.nvml_total_bytes],
];
const HOST_METERS = [
  ["cpu", (host) => host.cpu_pct, (host) => percent(host.cpu_pct), () => 100],
  ["ram", (host) => host.memory_used_bytes, (host) => ofMost(host.memory_used_bytes, host.memory_total_bytes, "GiB", gib), (host) => host.memory_total_bytes],
  ["rss", (host) => host.process_rss_bytes, (host) => (host.process_rss_bytes === null ? t("none") : memorySize(host.process_rss_bytes)), (host) => host.memory_total_bytes],
  ["load", (host) => host.load_1m, (host) => withUnit(host.load_1m, "", 2).trim(), (host) => host.cpu_count],
];

function ofMost(value, most, unit, write) {
  if (value === null) return t("none");
  return most === null ? `${write(value)}\u00a0${unit}` : `${write(value)} / ${write(most)}\u00a0${unit}`;
}

/** A group of meters over one device; `read` takes a reading. */
class Meters {
  constructor(meters) {
    this.rows = meters.map(([key, valueOf, write, mostOf]) => {
      const spark = new Sparkline();
      const value = h("span.zi-number");
      const row = h("li", { title: t(`meter.${key}.how`), dataset: { meter: key } }, h("span", {}, t(`meter.${key}`)), spark.element, value);
      return { row, read: (reading) => (spark.push(valueOf(reading), mostOf(reading)), setText(value, write(reading))) };
    });
    this.element = h("ul.zi-meters", {}, this.rows.map(({ row }) => row));
  }

  read(reading) {
    for (const { read } of this.rows) read(reading);
  }
}

class Instruments extends Live {
  static topics = ["telemetry", "readiness", "jobs"];
  #staleness = 0;

  build() {
    this.heard = null;
    this.gpus = new Map(); // index -> its part of the panel
    this.warmup = h("section.zi-warmup", { hidden: true });
    this.age = h("span.zi-age");
    this.devices = h("div");
    this.note = h("p.zi-note", { hidden: true });
    this.hostName = h("h3");
    this.host = new Meters(HOST_METERS);
    this.counters = h("dl.zi-counters");
    this.modelFacts = h("section.zi-model", { hidden: true });
    this.append(
      h("aside", { "aria-label": t("instruments") },
        this.warmup,
        h("section", {}, h("div.zi-section-head", {}, h("h2", {}, t("machine")), this.age), this.devices, this.note, this.hostName, this.host.element, this.counters),
        h("section", {}, h("zi-chart")),
        this.modelFacts,
      ),
    );
    clearInterval(this.#staleness);
    this.#staleness = setInterval(() => this.#showAge(), CHECK_MS);
    this.#showTelemetry();
    this.#showReadiness();
    this.#showAge();
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    clearInterval(this.#staleness);
  }

  update(topic) {
    if (topic === "telemetry") this.#showTelemetry();
    if (topic === "readiness") this.#showReadiness();
    if (topic === "jobs") this.#showCounters();
  }

  #showTelemetry() {
    const { telemetry } = state;
    if (!telemetry || this.heard === telemetry) return;
    this.heard = telemetry;
    for (const gpu of telemetry.gpus) this.#showGpu(gpu, telemetry.gpus.length > 1);
    for (const [index, part] of this.gpus) if (!telemetry.gpus.some((gpu) => gpu.index === index)) part.remove(), this.gpus.delete(index);
    const statement = telemetry.gpus.length ? telemetry.gpu_note : `${t("machine.nogpu")} ${telemetry.gpu_note}`;
    setText(this.note, statement);
    this.note.hidden = !statement;
    this.dataset.gpus = String(telemetry.gpus.length);
    const { cpu_name: name, cpu_count: cores } = telemetry.host;
    setText(this.hostName, [name, cores && t("meter.cores", { n: count(cores) })].filter(Boolean).join(" · "));
    this.host.read(telemetry.host);
    this.#showCounters();
    this.#showAge();
  }

  #showGpu(gpu, several) {
    let part = this.gpus.get(gpu.index);
    if (!part) {
      part = h("div.zi-gpu");
      part.name = h("h3");
      part.meters = new Meters(GPU_METERS);
      part.throttle = h("p.zi-throttle", { title: t("meter.throttle.how") });
      part.append(part.name, part.meters.element, part.throttle);
      this.gpus.set(gpu.index, part);
      this.devices.append(part);
    }
    setText(part.name, several ? `${gpu.index}: ${gpu.name}` : gpu.name);
    part.name.title = gpu.driver ? t("meter.driver", { version: gpu.driver }) : "";
    part.meters.read(gpu);
    const reasons = gpu.throttle_reasons;
    part.throttle.dataset.kind = reasons?.length ? "held" : "free";
    setText(part.throttle, reasons === null ? t("throttle.unknown") : reasons.length ? t("throttle.held", { reasons: reasons.map(reasonName).join(", ") }) : t("throttle.free"));
  }

  #showCounters() {
    const { telemetry } = state;
    if (!telemetry) return;
    const cache = telemetry.embedding_cache;
    const asked = cache.hits + cache.misses;
    const waiting = activeJobs().filter((job) => job.phase === "queued").length;
    const rows = [
      ["queue", count(waiting)],
      ["saves", count(telemetry.pending_saves)],
      ["cache", asked ? t("counter.cache.value", { hits: count(cache.hits), asked: count(asked) }) : t("counter.cache.unused")],
      ["saved", ms(cache.saved_ms)],
    ];
    this.counters.replaceChildren(...rows.map(([key, value]) => h("div", { title: t(`counter.${key}.how`) }, h("dt", {}, t(`counter.${key}`)), h("dd.zi-number", {}, value))));
  }

  #showAge() {
    const { telemetry, telemetryHeardAt } = state;
    const silentMs = performance.now() - telemetryHeardAt;
    const ageMs = silentMs + 1000 * (telemetry?.age_s ?? 0);
    const stale = !telemetry || ageMs > STALE_AFTER_MS;
    this.dataset.stale = String(stale);
    this.age.title = t("machine.how");
    setText(this.age, !telemetry ? t("machine.waiting") : stale ? t("machine.stale", { time: seconds(ageMs) }) : t("machine.live"));
  }

  // ---- warm-up and model -------------------------------------------------------------------------------------------

  #showReadiness() {
    const { readiness } = state;
    this.#showWarmup(readiness);
    const loaded = model();
    this.modelFacts.hidden = !loaded;
    if (loaded) this.modelFacts.replaceChildren(h("h2", {}, t("model")), modelList(loaded));
  }

  #showWarmup(readiness) {
    this.warmup.hidden = !readiness || (readiness.ready && !readiness.error);
    if (this.warmup.hidden) return;
    const share = Math.round(readiness.progress * 100);
    const failed = readiness.phase === "failed" || readiness.error;
    this.warmup.dataset.kind = failed ? "bad" : "wait";
    this.warmup.replaceChildren(
      h("div.zi-section-head", {}, h("h2", {}, t(`warmup.${readiness.phase}`)), h("span.zi-number", {}, failed ? "" : percent(share))),
      h("div.zi-progress", { role: "progressbar", "aria-label": t("warmup"), "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": share },
        h("div.zi-progress-fill", { style: { "--zi-done": readiness.progress } })),
      h("p", {}, failed ? readiness.error || readiness.detail : readiness.detail),
    );
  }
}

function reasonName(reason) {
  const key = `throttle.${reason.replaceAll(" ", "_")}`;
  return hasText(key) ? t(key) : reason;
}

function modelList(loaded) {
  const rows = [
    [t("model.name"), loaded.name, t("model.fingerprint", { hex: loaded.fingerprint })],
    [t("model.device"), loaded.device_name, loaded.device],
    [t("model.dtype"), loaded.dtype, loaded.dtype_reason],
    [t("model.plan"), loaded.memory_plan, loaded.memory_plan_reason],
    [t("model.loaded"), ms(loaded.load_ms), t("model.loaded.how")],
  ];
  return h("dl", {}, rows.map(([name, value, reason]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, h("small", {}, reason)))));
}

customElements.define("zi-instruments", Instruments);
