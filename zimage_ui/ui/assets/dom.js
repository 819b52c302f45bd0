// Small helpers over the DOM. Text goes in as text: nothing here or elsewhere sets innerHTML.

import { onLanguage, t } from "./texts.js";
import { subscribe } from "./store.js";

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  open: "M9 4H4v12h12v-5M12 3h5v5M17 3l-8 8",
  download: "M10 3v9m-4-4 4 4 4-4M4 16h12",
  copy: "M7 7h9v10H7zM4 13V3h9",
  reuse: "M4 8h9a3.5 3.5 0 0 1 0 7H8M4 8l3-3M4 8l3 3",
  forth: "M5 10h10M10.5 5.5 15 10l-4.5 4.5",
  turn: "M16 10a6 6 0 1 1-2-4.5M16 2.5v3.7h-3.7",
  back: "M11 4l-6 6 6 6M5 10h11",
  close: "M5 5l10 10M15 5 5 15",
  sliders: "M3 6h7m4 0h3M3 14h3m4 0h7M12 4v4M8 12v4",
  alert: "M10 6v5m0 3v.01M10 2.5 18 17H2z",
};

/** Builds an element: `h("a.zi-link", {href, onclick, dataset, style}, "text", child, ...)`, without empty children. */
export function h(selector, properties = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "style") setStyle(element, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => ![null, undefined, false, ""].includes(child)));
  return element;
}

function setStyle(element, properties) {
  for (const [property, value] of Object.entries(properties)) element.style.setProperty(property, value);
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function icon(name) {
  return svg("svg", { class: "zi-icon", viewBox: "0 0 20 20", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
}

/** A button of ours; with an icon its words become its name and tooltip. */
export function button(words, onclick, { icon: iconName, className = "zi-quiet", ...attributes } = {}) {
  if (!iconName) return h("button", { type: "button", class: className, onclick, ...attributes }, words);
  const named = { type: "button", class: `${className} zi-icon-button`, title: words, "aria-label": words, onclick };
  return h("button", { ...named, ...attributes }, icon(iconName));
}

/** Writes text only where it differs, so that nothing is laid out anew for nothing. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** An element that follows the store: `build()` makes it, in each language anew; `update(topic)` keeps it true. */
export class Live extends HTMLElement {
  static topics = [];
  #ends = [];

  connectedCallback() {
    this.#ends = [subscribe(this.constructor.topics, (topic) => this.update(topic)), onLanguage(() => this.rebuild())];
    this.rebuild();
  }

  disconnectedCallback() {
    for (const end of this.#ends) end();
  }

  rebuild() {
    this.replaceChildren();
    this.build();
    this.update("language");
  }

  build() {}

  update() {}
}

/** Lets what the person waits for come first; but not later than in a moment. */
export function whenIdle(task, timeoutMs = 200) {
  if (globalThis.requestIdleCallback) requestIdleCallback(task, { timeout: timeoutMs });
  else setTimeout(task, timeoutMs);
}

/** Copies text; without the clipboard API (plain http on a LAN) by way of a selection. Returns whether it worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea.zi-offscreen", { readonly: true, "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

export function untrainedBadge() {
  return h("span.zi-badge.zi-untrained", { title: t("untrained.why") }, t("untrained"));
}
