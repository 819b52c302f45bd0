// <zi-header>: who we are, which model, how things stand, the language. And <zi-more>: the rest of the form.

import { button, h, icon, Live, setText, svg, untrainedBadge } from "./dom.js";
import { count } from "./format.js";
import { activeJobs, model, state } from "./store.js";
import { currentLanguage, setLanguage, t } from "./texts.js";

const LANGUAGES = { en: "EN", zh: "中文" };

class Header extends Live {
  static topics = ["readiness", "connection", "jobs"];

  build() {
    this.model = h("span.zi-model-name");
    this.status = h("span.zi-status");
    this.append(
      h("header", {},
        h("h1", {}, mark(), "zimage-ui"),
        this.model,
        h("span.zi-grow"),
        this.status,
        h("div.zi-languages", { role: "group", "aria-label": t("language") },
          Object.keys(LANGUAGES).map(languageButton),
        ),
      ),
    );
  }

  update() {
    const loaded = model();
    const parts = loaded ? [h("span", {}, loaded.name), loaded.trained ? "" : untrainedBadge()] : [];
    this.model.replaceChildren(...parts);
    const [kind, words] = this.#standing();
    this.status.dataset.kind = kind;
    setText(this.status, words);
  }

  #standing() {
    const { connection, readiness } = state;
    if (connection === "lost") return ["bad", t("status.lost")];
    if (!readiness) return ["wait", t("status.connecting")];
    if (readiness.phase === "failed" || readiness.error) return ["bad", t("status.failed")];
    if (!readiness.ready) return ["wait", t("status.warming", { n: Math.floor(readiness.progress * 100) })];
    const active = activeJobs();
    const waiting = active.filter((job) => job.phase === "queued").length;
    if (active.some((job) => job.phase === "running")) {
      return ["busy", waiting ? t("status.busy.queue", { n: count(waiting) }) : t("status.busy")];
    }
    return ["good", t("status.ready")];
  }
}

function languageButton(language) {
  const pressed = String(language === currentLanguage());
  const attributes = { className: "zi-language", lang: language, "aria-pressed": pressed };
  return button(LANGUAGES[language], () => setLanguage(language), attributes);
}

function mark() {
  return svg("svg", { class: "zi-mark", viewBox: "0 0 32 32", "aria-hidden": "true" },
    svg("rect", { width: 32, height: 32, rx: 8 }),
    svg("path", { d: "M9.5 10h13L9.5 22h13" }),
  );
}

class More extends Live {
  build() {
    const root = document.documentElement;
    const flip = () => toggle.setAttribute("aria-expanded", String(root.toggleAttribute("data-zi-more")));
    const named = { title: t("form.more.title"), "aria-label": t("form.more") };
    const open = String(root.hasAttribute("data-zi-more"));
    const toggle = button("", flip, { className: "zi-quiet zi-more", "aria-expanded": open, ...named });
    toggle.append(icon("sliders"), h("span", {}, t("form.more")));
    this.append(toggle);
  }
}

customElements.define("zi-header", Header);
customElements.define("zi-more", More);
