// <zi-warmup>: how far the warm-up is, until it is done. <zi-model>: what is loaded, where, and why so.

import { h, Live } from "./dom.js";
import { ms, percent } from "./format.js";
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
  static topics = ["readiness"];

  update() {
    const loaded = model();
    this.hidden = !loaded;
    if (loaded) this.replaceChildren(h("h2", {}, t("model")), h("dl", {}, rowsOf(loaded).map(row)));
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

customElements.define("zi-warmup", Warmup);
customElements.define("zi-model", Model);
