// <zi-canvas>: the picture. A job's previews grow in it step by step, then its pictures take their place.

import { button, h, icon, Live, untrainedBadge } from "./dom.js";
import { count } from "./format.js";
import { focus, isActive, select, state } from "./store.js";
import { hasText, t } from "./texts.js";

const MAX_ENLARGEMENT = 2.5; // small models make small pictures; beyond this they are all blur
const GAP_PX = 10;
const SQUARE_BONUS = 1.1;
const FULL_BONUS = 1.05;

/** How many columns give the largest tiles for `n` pictures of this shape; of nearly equal ones the fuller grid. */
function bestGrid(n, width, height, room) {
  let best = { columns: 1, scale: 0, worth: 0 };
  for (let columns = 1; columns <= n; columns++) {
    const rows = Math.ceil(n / columns);
    const across = (room.width - GAP_PX * (columns - 1)) / columns / width;
    const down = (room.height - GAP_PX * (rows - 1)) / rows / height;
    const scale = Math.min(across, down, MAX_ENLARGEMENT);
    const worth = scale * (columns === rows ? SQUARE_BONUS : 1) * (n % columns ? 1 : FULL_BONUS);
    if (worth > best.worth) best = { columns, scale, worth };
  }
  return best;
}

class Canvas extends Live {
  static topics = ["jobs", "selection", "readiness", "pictures"];
  #tiles = new Map(); // key -> tile, so that a picture that is shown is never touched
  #wanted = { tiles: [], shape: null }; // what is to be shown as soon as all of it is decoded
  #shape = null; // of what is shown
  #observer = new ResizeObserver(() => this.#layOut());

  build() {
    this.#tiles.clear();
    this.grid = h("div.zi-grid");
    this.words = h("div.zi-canvas-words");
    this.append(this.grid, this.words);
    this.#observer.observe(this);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.#observer.disconnect();
  }

  update() {
    const { job, picture } = focus();
    this.dataset.state = job?.phase ?? (picture ? "picture" : state.listed ? "empty" : "unknown");
    if (picture) this.#show([picture], picture, 1);
    else if (job?.pictures.length) this.#show(job.pictures, job, isActive(job) ? job.num_images : job.pictures.length);
    else if (job?.preview) this.#grow(job);
    else if (job) this.#hold(job);
    else this.#keep([], null);
    this.#say(job, picture);
  }

  /** Finished pictures, each put in when it is decoded: until then what is there stays. */
  #show(pictures, { width, height, untrained, num_images: siblings = 1 }, places) {
    const tiles = pictures.map((picture) => this.#pictureTile(picture, untrained, siblings > 1));
    this.#keep(tiles, { width, height, places });
  }

  #grow(job) {
    const key = `preview ${job.job_id}`;
    const preview = () => h("img.zi-preview", { alt: t("canvas.preview") });
    const tile = this.#tiles.get(key) ?? this.#newTile(key, preview(), job.untrained);
    tile.firstChild.src = job.preview;
    this.#keep([tile], { width: job.width, height: job.height, places: 1 });
  }

  /** A job that has nothing to show yet keeps its place. */
  #hold(job) {
    const key = `hold ${job.job_id}`;
    const tile = this.#tiles.get(key) ?? this.#newTile(key, h("div.zi-blank"), job.untrained);
    this.#keep([tile], { width: job.width, height: job.height, places: 1 });
  }

  #pictureTile(picture, untrained, several) {
    const key = several ? `one of ${picture.picture_id}` : picture.picture_id;
    const known = this.#tiles.get(key);
    if (known) return known;
    const alt = state.pictures.get(picture.picture_id)?.prompt ?? "";
    const image = h("img.zi-picture", { alt, fetchpriority: "high", elementtiming: "picture" });
    image.src = picture.url;
    const tile = this.#newTile(key, image, untrained);
    const ready = () => this.#ready(tile);
    tile.pending = image.decode().then(ready, () => {
      tile.firstChild.replaceWith(h("div.zi-blank", {}, t("canvas.broken")));
      ready();
    });
    const look = several ? () => select(picture.picture_id) : () => enlarge(picture, image.alt);
    tile.append(button(t(several ? "canvas.single" : "canvas.enlarge"), look, { className: "zi-tile-button" }));
    return tile;
  }

  #newTile(key, content, untrained) {
    const tile = h("figure.zi-tile", { dataset: { key } }, content, untrained && untrainedBadge());
    this.#tiles.set(key, tile);
    return tile;
  }

  #ready(tile) {
    tile.pending = null;
    if (this.#wanted.tiles.includes(tile)) this.#keep(this.#wanted.tiles, this.#wanted.shape);
    this.dispatchEvent(new CustomEvent("picture-shown", { bubbles: true, detail: tile.dataset.key.split(" ").at(-1) }));
  }

  /** Shows exactly these tiles, once all of them are decoded; forgets the rest. */
  #keep(tiles, shape) {
    this.#wanted = { tiles, shape };
    if (tiles.some((tile) => tile.pending)) return;
    this.#shape = shape;
    if (tiles.length !== this.grid.children.length || tiles.some((tile, place) => this.grid.children[place] !== tile)) {
      this.grid.replaceChildren(...tiles);
    }
    for (const [key, tile] of this.#tiles) if (!tiles.includes(tile)) this.#tiles.delete(key);
    this.#layOut();
  }

  #layOut() {
    if (!this.#shape) return;
    const { width, height, places } = this.#shape;
    const { columns, scale } = bestGrid(places, width, height, this.#room());
    this.grid.style.setProperty("--zi-columns", columns);
    this.grid.style.setProperty("--zi-tile-width", `${Math.floor(width * scale)}px`);
    this.grid.style.setProperty("--zi-tile-height", `${Math.floor(height * scale)}px`);
  }

  #room() {
    const inset = 2 * parseFloat(getComputedStyle(this).paddingLeft);
    return { width: this.clientWidth - inset, height: this.clientHeight - inset };
  }

  // ---- words in the canvas: nothing yet, waiting, went wrong -------------------------------------------------------

  #say(job, picture) {
    const words = this.#wordsFor(job, picture);
    const key = words?.key ?? "";
    if (this.words.dataset.key === key) return;
    this.words.dataset.key = key;
    this.words.replaceChildren(...(words?.make() ?? []));
  }

  #wordsFor(job, picture) {
    if (job?.phase === "failed") return { key: `failed ${job.job_id}`, make: () => failure(job.error) };
    if (job?.phase === "queued") return { key: `queued ${job.position}`, make: () => waiting(job) };
    if (job || picture) return this.#backToJob(picture);
    return state.listed ? { key: "empty", make: () => [h("zi-welcome")] } : null;
  }

  #backToJob(picture) {
    if (!picture || !state.selection) return null;
    const back = () => select(null);
    return { key: "selected", make: () => [button(t("canvas.back"), back, { className: "zi-quiet zi-back" })] };
  }
}

function waiting(job) {
  const place = job.position ? t("canvas.queued", { n: count(job.position) }) : t("canvas.next");
  return [h("p.zi-pill", {}, state.readiness?.ready === false ? t("canvas.warming") : place)];
}

function failure(error) {
  const title = error && hasText(`error.${error.code}`) ? t(`error.${error.code}`) : t("error.error");
  return [
    h("div.zi-failure", { role: "alert" },
      icon("alert"),
      h("div", {}, h("h2", {}, title), h("p", {}, error?.message ?? ""), h("p.zi-hint", {}, error?.hint ?? "")),
    ),
  ];
}

function enlarge(picture, alt) {
  const image = h("img", { src: picture.url, alt });
  const close = () => dialog.close();
  const dialog = h("dialog.zi-lightbox", { "aria-label": t("canvas.enlarge"), onclick: close }, image,
    button(t("close"), close, { icon: "close" }),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

customElements.define("zi-canvas", Canvas);
