// Rows of a device's sensors: what is measured, its way over the last minutes, its value now.

import { h, setText } from "./dom.js";
import { count, gib, memorySize, percent, withUnit } from "./format.js";
import { recall, Sparkline } from "./sparkline.js";
import { t } from "./texts.js";

// Of each: the key of its words, its value in a reading, the top of its scale there, and how it is written.
export const GPU_METERS = [
  { key: "utilization", value: "utilization_pct", top: 100, write: percent },
  { key: "clock", value: "sm_clock_mhz", top: "max_sm_clock_mhz", write: (mhz) => withUnit(mhz, "MHz") },
  { key: "temperature", value: "temperature_c", top: 100, write: (celsius) => withUnit(celsius, "°C") },
  { key: "power", value: "power_w", top: "power_limit_w", write: (watts, limit) => ofMost(watts, limit, "W", count) },
  { key: "memory", value: "nvml_used_bytes", top: "nvml_total_bytes", write: ofGib },
];
export const HOST_METERS = [
  { key: "cpu", value: "cpu_pct", top: 100, write: percent },
  { key: "ram", value: "memory_used_bytes", top: "memory_total_bytes", write: ofGib },
  { key: "rss", value: "process_rss_bytes", top: "memory_total_bytes", write: memorySize },
  { key: "load", value: "load_1m", top: "cpu_count", write: (load) => withUnit(load, "", 2).trim() },
];

function ofGib(bytes, total) {
  return ofMost(bytes, total, "GiB", gib);
}

function ofMost(value, most, unit, write) {
  if (value === null) return t("none");
  return most === null ? `${write(value)}\u00a0${unit}` : `${write(value)} / ${write(most)}\u00a0${unit}`;
}

/** Gives the lines of `device` what was measured before; `columns` has each value of a reading as a list. */
export function recallMeters(device, meters, columns) {
  for (const { key, value } of meters) recall(`${device} ${key}`, columns[value] ?? []);
}

export class Meters {
  #rows;

  /** `device` names the history of the lines. */
  constructor(device, meters) {
    this.#rows = meters.map((meter) => ({
      ...meter,
      line: new Sparkline(`${device} ${meter.key}`),
      number: h("span.zi-number"),
    }));
    this.element = h("ul.zi-meters", {}, this.#rows.map(({ key, line, number }) => {
      const row = { title: t(`meter.${key}.how`), dataset: { meter: key } };
      return h("li", row, h("span", {}, t(`meter.${key}`)), line.element, number);
    }));
  }

  /** Shows a reading; `fresh` ones lengthen the lines. */
  show(reading, fresh) {
    for (const { value, top, write, line, number } of this.#rows) {
      const [now, most] = [reading[value], typeof top === "number" ? top : reading[top]];
      if (fresh) line.push(now, most);
      else line.draw(most);
      setText(number, now === null ? t("none") : write(now, most));
    }
  }
}
