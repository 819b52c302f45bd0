// <zi-timings>: under the picture. While a job runs: where it is and how long it will take; then: where its time went.

import { accountOf, factsOf } from "./account.js";
import { h, Live, setText } from "./dom.js";
import { Progress } from "./progress.js";
import { focus, isActive, state } from "./store.js";
import { t } from "./texts.js";

const NEWS_MS = 1000;

class Timings extends Live {
  static topics = ["jobs", "selection", "pictures", "readiness"];
  #progress = null;

  build() {
    this.key = null;
    this.announcer = h("p.zi-offscreen", { role: "status", "aria-live": "polite" });
    this.body = h("div.zi-timings-body");
    this.append(this.body, this.announcer);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.#progress?.stop();
  }

  update() {
    const { job, picture } = focus();
    if (job && isActive(job) && !job.pictures.length) this.#follow(job);
    else this.#account(job, picture);
    this.#announce();
  }

  #follow(job) {
    if (this.key !== `progress ${job.job_id}`) {
      this.#progress?.stop();
      this.#progress = new Progress(job.job_id);
      this.key = `progress ${job.job_id}`;
      this.body.replaceChildren(...this.#progress.parts);
    }
    this.#progress.follow(job);
  }

  #account(job, picture) {
    this.#progress?.stop();
    const shown = picture ? [picture] : (job?.pictures ?? []);
    const facts = shown.length && factsOf(job, picture);
    const key = facts ? `account ${shown[0].picture_id} ${facts.phase} ${facts.revision}` : "nothing";
    if (this.key === key) return;
    this.key = key;
    const nothing = [h("p.zi-facts.zi-faint", {}, t("timings.nothing"))];
    this.body.replaceChildren(...(facts ? accountOf(facts, shown) : nothing));
  }

  /** Said aloud at what matters to someone who does not see the page; not at each step. */
  #announce() {
    const job = [...state.jobs.values()].sort((a, b) => a.heardAt - b.heardAt).at(-1);
    if (job && performance.now() - job.heardAt < NEWS_MS) setText(this.announcer, t(`phase.${job.phase}`));
  }
}

customElements.define("zi-timings", Timings);
