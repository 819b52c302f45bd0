// <zi-warmup>: how far the warm-up is, until it is done. <zi-model>: what is loaded, where, and why so, and which sizes
// are prepared.

import { h, Live } from "./dom.js";
import { count, ms, percent } from "./format.js";
import { model, state } from "./store.js";
import { t } from "./texts.js";

class Warmup extends Live {
  static topics = ["readiness"];

  update() {
    const { readiness } = state;
    this.hidden = !readiness || (readiness.ready && !readiness.error);
    if (this.hidden) return;
    const failed = Boolean(readiness.error) || readiness.phase === "failed";
    this.dataset.kind = failed ? "bad" : "wait";
    this.replaceChildren(
      h("div.zi-section-head", {},
        h("h2", {}, t(`warmup.${failed ? "failed" : readiness.phase}`)),
        h("span.zi-number", {}, failed ? "" : percent(readiness.progress * 100)),
      ),
      progressBar(readiness.progress),
      h("p", {}, failed ? readiness.error || readiness.detail : readiness.detail),
    );
  }
}

function progressBar(share) {
  const range = { "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(share * 100) };
  return h("div.zi-progress", { role: "progressbar", "aria-label": t("warmup"), ...range },
    h("div.zi-progress-fill", { style: { "--zi-done": share } }),
  );
}

class Model extends Live {
  static topics = ["readiness", "shapes"];

  update() {
    const loaded = model();
    this.hidden = !loaded;
    if (!loaded) return;
    const rows = h("dl", {}, rowsOf(loaded).map(row), shapesRow(state.shapes));
    this.replaceChildren(h("h2", {}, t("model")), rows);
  }
}

/** Of each row: its name, the value, and the reasons for it or how it was taken. */
function rowsOf(loaded) {
  return [
    ["model.name", loaded.name, loaded.source_reason, t("model.fingerprint", { hex: loaded.fingerprint })],
    ["model.device", loaded.device_name, loaded.device],
    ["model.dtype", loaded.dtype, loaded.dtype_reason],
    ["model.precision", t(`precision.${loaded.precision}`), loaded.precision_reason],
    ["model.plan", loaded.memory_plan, loaded.memory_plan_reason],
    ["model.loaded", ms(loaded.load_ms), t("model.loaded.how")],
  ];
}

function row([key, value, ...reasons]) {
  const notes = reasons.filter(Boolean).map((reason) => h("small", {}, reason));
  return h("div", {}, h("dt", {}, t(key)), h("dd", {}, value, notes));
}

/** The sizes, each with how it stands: its shapes differ in the length of the prompt alone. */
function shapesRow(shapes) {
  if (!shapes.length) return null;
  const sizes = new Map();
  for (const shape of shapes) {
    const pictures = shape.num_images > 1 ? `${count(shape.num_images)} × ` : "";
    const size = `${pictures}${shape.width}×${shape.height}`;
    sizes.set(size, [...(sizes.get(size) ?? []), shape]);
  }
  const list = h("ul.zi-shapes", {}, [...sizes].map(([size, ofSize]) => shapeItem(size, ofSize)));
  const counted = t("shapes.counted", { warm: count(shapes.filter(isWarm).length), all: count(shapes.length) });
  return h("div", { title: t("shapes.how") },
    h("dt", {}, t("shapes")), h("dd", {}, list, h("small", {}, counted)),
  );
}

function shapeItem(size, shapes) {
  const standing = standingOf(shapes);
  const lengths = shapes.map(({ prompt_tokens: n, state: each }) =>
    t("shapes.length", { n: count(n), state: t(`shape.${each}`) }),
  );
  return h("li", { dataset: { state: standing }, title: lengths.join("\n") },
    size, h("span.zi-offscreen", {}, ` (${t(`shape.${standing}`)})`),
  );
}

/** Warm only if all are. */
function standingOf(shapes) {
  if (shapes.some((shape) => shape.state === "preparing")) return "preparing";
  return shapes.every(isWarm) ? "warm" : "cold";
}

function isWarm(shape) {
  return shape.state === "warm";
}

customElements.define("zi-warmup", Warmup);
customElements.define("zi-model", Model);
