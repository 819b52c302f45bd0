// A line of the last minutes, without axes: the number beside it is the truth, the line is its way there.

import { svg } from "./dom.js";

const MOST_POINTS = 90;
const LEAST_POINTS = 20; // the span of the line while there are few
const WIDTH = 96;
const HEIGHT = 24;

export class Sparkline {
  #values = [];

  /** `most` is the top of the scale; without it the highest value seen is. */
  constructor(most = null) {
    this.most = most;
    this.line = svg("path", { class: "zi-spark-line" });
    this.area = svg("path", { class: "zi-spark-area" });
    this.element = svg("svg", { class: "zi-spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, this.area, this.line);
  }

  /** Adds one value; null (no reading) leaves a gap. */
  push(value, most = this.most) {
    this.#values.push(value ?? null);
    if (this.#values.length > MOST_POINTS) this.#values.shift();
    this.most = most;
    this.#draw();
  }

  #draw() {
    const known = this.#values.filter((value) => value !== null);
    const top = Math.max(this.most ?? Math.max(...known, 0) * 1.15, 1e-9);
    const span = Math.max(this.#values.length, LEAST_POINTS) - 1;
    const x = (place) => ((place + span + 1 - this.#values.length) / span) * WIDTH;
    const y = (value) => HEIGHT - 1.5 - (Math.min(value, top) / top) * (HEIGHT - 3);
    const runs = [];
    this.#values.forEach((value, place) => {
      if (value === null) return;
      const point = [x(place).toFixed(1), y(value).toFixed(1)];
      if (place > 0 && this.#values[place - 1] !== null) runs.at(-1).push(point);
      else runs.push([point]);
    });
    this.line.setAttribute("d", runs.map((run) => `M${run.join("L")}`).join(""));
    this.area.setAttribute("d", runs.map((run) => `M${run[0][0]},${HEIGHT}L${run.join("L")}L${run.at(-1)[0]},${HEIGHT}Z`).join(""));
  }
}
