// <zi-strip>: the newest pictures, the newest first. A click looks at one; the first click back follows again.

import { h, Live, whenIdle } from "./dom.js";
import { focus, newestPictures, select, state } from "./store.js";
import { t } from "./texts.js";

class Strip extends Live {
  static topics = ["pictures", "selection", "jobs"];
  #thumbs = new Map();

  build() {
    this.#thumbs.clear();
    this.list = h("ul");
    this.empty = h("p.zi-strip-empty", {}, t("strip.empty"));
    this.append(h("nav", { "aria-label": t("strip.label") }, this.list, this.empty));
  }

  update(topic) {
    if (topic === "pictures") whenIdle(() => this.#refresh());
    else if (topic === "language") this.#refresh();
    else this.#mark();
  }

  #refresh() {
    this.#fill();
    this.#mark();
  }

  #fill() {
    const pictures = newestPictures();
    this.empty.hidden = pictures.length > 0;
    const items = pictures.map((picture) => this.#thumbs.get(picture.picture_id) ?? this.#thumb(picture));
    this.#thumbs = new Map(items.map((item) => [item.dataset.id, item]));
    items.forEach((item, place) => {
      if (this.list.children[place] !== item) this.list.insertBefore(item, this.list.children[place] ?? null);
    });
    while (this.list.children.length > items.length) this.list.lastChild.remove();
  }

  #thumb(picture) {
    const label = t("strip.picture", { prompt: picture.prompt, seed: picture.seed });
    const look = () => select(state.selection === picture.picture_id ? null : picture.picture_id);
    const image = h("img", { src: picture.url, alt: "", loading: "lazy", decoding: "async", fetchpriority: "low" });
    return h("li", { dataset: { id: picture.picture_id } },
      h("button", { type: "button", title: picture.prompt, "aria-label": label, onclick: look },
        image,
        picture.untrained && h("span.zi-thumb-badge", { title: t("untrained.why") }, t("untrained")),
      ),
    );
  }

  #mark() {
    const { job, picture } = focus();
    const shown = new Set(picture ? [picture.picture_id] : (job?.pictures ?? []).map((each) => each.picture_id));
    for (const [id, item] of this.#thumbs) {
      const mark = shown.has(id) ? "true" : "false";
      if (item.firstChild.getAttribute("aria-current") !== mark) item.firstChild.setAttribute("aria-current", mark);
    }
  }
}

customElements.define("zi-strip", Strip);
