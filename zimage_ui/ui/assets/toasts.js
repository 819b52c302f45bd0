// <zi-toasts>: short messages that go by themselves; mistakes stay longer. All of it is text.

import { button, h, icon } from "./dom.js";
import { t } from "./texts.js";

const NOTE_MS = 2500;
const MISTAKE_MS = 10_000;
const MOST = 3;

class Toasts extends HTMLElement {
  connectedCallback() {
    this.setAttribute("aria-live", "polite");
  }

  show(content, kind, timeMs) {
    const note = h("div.zi-toast", { dataset: { kind }, role: kind === "mistake" ? "alert" : "status" }, content);
    const end = () => note.remove();
    note.append(button(t("close"), end, { icon: "close" }));
    this.append(note);
    while (this.children.length > MOST) this.firstChild.remove();
    setTimeout(end, timeMs);
  }
}

customElements.define("zi-toasts", Toasts);

function place() {
  return document.querySelector("zi-toasts");
}

export function toast(words) {
  place()?.show([h("p", {}, words)], "note", NOTE_MS);
}

/** What went wrong before is past: the person has tried again. */
export function clearMistakes() {
  for (const note of place()?.querySelectorAll("[data-kind=mistake]") ?? []) note.remove();
}

/** A mistake: what happened, and what to do about it. */
export function mistake(title, message = "", hint = "") {
  const words = h("div", {}, h("strong", {}, title), h("p", {}, message), hint && h("p.zi-hint", {}, hint));
  place()?.show([icon("alert"), words], "mistake", MISTAKE_MS);
}
