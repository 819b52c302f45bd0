// <zi-welcome>: what an empty canvas says. Prompts that fit the model stand there to be clicked, a few at a time.

import { examples, focusPrompt, tryPrompt } from "./compose.js";
import { h, icon, Live, untrainedBadge } from "./dom.js";
import { model } from "./store.js";
import { currentLanguage, t } from "./texts.js";

const SHOWN = 4;

let first = 0; // of the examples that are shown; the same in the other language

class Welcome extends Live {
  static topics = ["readiness"];

  build() {
    this.hint = h("p");
    this.list = h("ul.zi-examples", { "aria-label": t("welcome.examples") });
    const turn = { type: "button", onclick: () => this.#turn() };
    this.more = h("button.zi-quiet.zi-welcome-more", turn, icon("turn"), t("welcome.more"));
    this.note = h("p.zi-note", {}, untrainedBadge(), " ", t("untrained.why"));
    this.append(h("h2", {}, t("welcome")), this.hint, this.list, this.more, this.note);
    this.offered = "";
  }

  /** Anew only where the model's examples are others than before: what is focused stays focused. */
  update() {
    const offered = JSON.stringify(examples());
    this.note.hidden = model()?.trained !== false;
    if (offered === this.offered) return;
    this.offered = offered;
    if (first >= examples().length) first = 0;
    this.hint.textContent = t(examples().length ? "welcome.choose" : "welcome.write");
    this.more.hidden = examples().length <= SHOWN;
    this.#show();
  }

  #turn() {
    first = (first + SHOWN) % examples().length;
    this.#show();
  }

  /** The next few, round and round. */
  #show() {
    const all = examples().map((example) => example[currentLanguage()]);
    const shown = [...all.slice(first), ...all.slice(0, first)].slice(0, SHOWN);
    this.list.replaceChildren(...shown.map((prompt) => h("li", {}, chip(prompt))));
  }
}

function chip(prompt) {
  return h("button.zi-example", { type: "button", onclick: choose }, h("span", {}, prompt), icon("forth"));
}

/** The focus goes on to the prompt, as the button is about to go; after a touch that would call up a keyboard. */
function choose(event) {
  tryPrompt(event.currentTarget.textContent);
  if (event.pointerType !== "touch") focusPrompt();
}

customElements.define("zi-welcome", Welcome);
