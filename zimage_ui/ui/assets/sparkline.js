// A line of the last minutes, without axes: the number beside it is the truth, the line is its way there.

import { svg } from "./dom.js";

const MOST_POINTS = 90;
const LEAST_POINTS = 20; // the span of the line while there are few
const WIDTH = 96;
const HEIGHT = 24;
const MARGIN = 1.5;
const HEADROOM = 1.15; // above the highest value seen, where the scale has no top of its own

const histories = new Map(); // name -> values; they outlive the elements, which are built anew in each language

/** Puts `values`, the oldest first, in place of what the line `name` had; it is drawn with its next reading. */
export function recall(name, values) {
  histories.set(name, values.slice(-MOST_POINTS));
}

export class Sparkline {
  #name;

  constructor(name) {
    this.#name = name;
    this.line = svg("path", { class: "zi-spark-line" });
    this.area = svg("path", { class: "zi-spark-area" });
    const frame = { class: "zi-spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" };
    this.element = svg("svg", { ...frame, "aria-hidden": "true" }, this.area, this.line);
  }

  get #values() {
    if (!histories.has(this.#name)) histories.set(this.#name, []);
    return histories.get(this.#name);
  }

  /** Adds a value (null: no reading, a gap); `most` is the top of the scale, if it has one. */
  push(value, most) {
    this.#values.push(value ?? null);
    if (this.#values.length > MOST_POINTS) this.#values.shift();
    this.draw(most);
  }

  draw(most) {
    const runs = this.#runs(most ?? Math.max(0, ...this.#values.filter((value) => value !== null)) * HEADROOM);
    this.line.setAttribute("d", runs.map((run) => `M${run.join("L")}`).join(""));
    const closed = (run) => `M${run[0][0]},${HEIGHT}L${run.join("L")}L${run.at(-1)[0]},${HEIGHT}Z`;
    this.area.setAttribute("d", runs.map(closed).join(""));
  }

  /** The points of the line, apart wherever a reading is missing. */
  #runs(top) {
    const values = this.#values;
    const span = Math.max(values.length, LEAST_POINTS) - 1;
    const x = (place) => ((place + span + 1 - values.length) / span) * WIDTH;
    const y = (value) => HEIGHT - MARGIN - (Math.min(value, top) / (top || 1)) * (HEIGHT - 2 * MARGIN);
    const runs = [];
    values.forEach((value, place) => {
      if (value === null) return;
      if (place === 0 || values[place - 1] === null) runs.push([]);
      runs.at(-1).push([x(place).toFixed(1), y(value).toFixed(1)]);
    });
    return runs;
  }
}
