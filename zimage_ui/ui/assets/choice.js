// <zi-choice name>: one of a few values, as a row of radio buttons. Gradio holds the value (`link`, set by compose.py).

import { defaultOf, recall, remember, sizes } from "./compose.js";
import { config } from "./config.js";
import { h, Live } from "./dom.js";
import { aspect } from "./format.js";
import { t } from "./texts.js";

const GLYPH_PX = 12;

function optionsOf(name) {
  if (name !== "size") return config.choices[name].map((value) => ({ value, words: t(`choice.${name}.${value}`) }));
  return [...sizes()].sort(inPairs).map(([width, height]) => ({
    value: `${width}x${height}`,
    words: aspect(width, height),
    detail: `${width} × ${height}`,
    ratio: width / height,
  }));
}

/** Squares first, the small before the large; then the others, each beside the one that is turned. */
function inPairs([width, height], [otherWidth, otherHeight]) {
  const [square, otherSquare] = [width === height, otherWidth === otherHeight];
  if (square !== otherSquare) return square ? -1 : 1;
  return square ? width - otherWidth : otherWidth * otherHeight - width * height || otherWidth - width;
}

class Choice extends Live {
  static topics = ["readiness"];
  #offered = "";

  connectedCallback() {
    this.name = this.getAttribute("name");
    super.connectedCallback();
    if (this.link) this.#linked();
    else this.addEventListener("linked", () => this.#linked(), { once: true });
  }

  build() {
    this.#offered = "";
    this.group = h("div.zi-options", { role: "radiogroup", "aria-label": t(`form.${this.name}`) });
    this.append(h("span.zi-label", { "aria-hidden": "true" }, t(`form.${this.name}`)), this.group);
  }

  update() {
    const options = optionsOf(this.name);
    const offered = JSON.stringify(options);
    if (offered === this.#offered) return;
    this.#offered = offered;
    this.group.style.setProperty("--zi-columns", Math.ceil(options.length / 2));
    this.group.replaceChildren(...options.map((option) => this.#option(option)));
    this.#settle();
  }

  #option({ value, words, detail, ratio }) {
    const onchange = () => this.#choose(value);
    const input = h("input", { type: "radio", name: `zi-choice-${this.name}`, value, onchange });
    const glyph = ratio && h("span.zi-glyph", { "aria-hidden": "true", style: glyphSize(ratio) });
    return h("label.zi-option", {}, input, glyph, h("span", {}, h("b", {}, words), detail && h("small", {}, detail)));
  }

  #linked() {
    this.link.watch(() => this.#mark());
    this.#settle();
  }

  /** What the person chose for such a model; else what the model wants; else what the form began with. */
  #settle() {
    if (!this.link) return;
    const values = [...this.group.querySelectorAll("input")].map((input) => input.value);
    const wanted = [recall(this.name), defaultOf(this.name) ?? this.link.get(), ...values];
    const next = wanted.find((value) => values.includes(value));
    if (this.link.get() !== next) this.link.set(next);
    this.#mark();
  }

  #choose(value) {
    this.link.set(value);
    remember(this.name, value);
    this.#mark();
  }

  #mark() {
    for (const input of this.group.querySelectorAll("input")) input.checked = input.value === this.link?.get();
  }
}

function glyphSize(ratio) {
  const [width, height] = ratio >= 1 ? [GLYPH_PX, GLYPH_PX / ratio] : [GLYPH_PX * ratio, GLYPH_PX];
  return { width: `${Math.round(width)}px`, height: `${Math.round(height)}px` };
}

customElements.define("zi-choice", Choice);
