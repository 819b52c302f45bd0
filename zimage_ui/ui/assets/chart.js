// <zi-chart>: the stage times of the last jobs, stacked. Python made the figure (chart.py); Plotly draws it, fetched
// from our own origin once the page stands and the chart can be seen.

import { methodOf } from "./account.js";
import { config } from "./config.js";
import { h, Live, whenIdle } from "./dom.js";
import { clock } from "./format.js";
import { timedJobs } from "./store.js";
import { t } from "./texts.js";

const IDLE_MS = 4000;
const LEAST_SLOTS = 12; // so that the first bars are bars and not walls
const LABELS = 4; // for as many there is room
const dark = matchMedia("(prefers-color-scheme: dark)");
let loading = null;

function loadPlotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = h("script", { src: config.plotly_url });
    script.onload = () => resolve(globalThis.Plotly);
    script.onerror = reject;
    document.head.append(script);
  });
  return loading;
}

class Chart extends Live {
  static topics = ["jobs"];
  #drawn = "";
  #observer = null;

  connectedCallback() {
    super.connectedCallback();
    dark.addEventListener("change", this.#redraw);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    dark.removeEventListener("change", this.#redraw);
    this.#observer?.disconnect();
  }

  build() {
    this.#drawn = "";
    this.plot = h("div.zi-plot", { role: "img" });
    this.empty = h("p.zi-note", {}, t("chart.empty"));
    this.append(h("div.zi-section-head", { title: t("chart.how") }, h("h2", {}, t("chart"))), this.plot, this.empty);
  }

  update() {
    const jobs = timedJobs().slice(-config.chart.jobs);
    this.empty.hidden = jobs.length > 0;
    this.plot.hidden = jobs.length === 0;
    const shown = jobs.map((job) => job.job_id).join();
    if (!jobs.length || shown === this.#drawn) return;
    this.#drawn = shown;
    this.plot.setAttribute("aria-label", t("chart.words", { n: jobs.length }));
    this.#inItsTime(() => this.#draw());
  }

  #redraw = () => {
    this.#drawn = "";
    this.update();
  };

  /** Four megabytes of script must not stand in the way of the first picture, nor a drawing in that of the next. */
  #inItsTime(task) {
    const soon = () => whenIdle(task, IDLE_MS);
    if (globalThis.Plotly) soon();
    else this.#whenSeen(() => whenIdle(() => loadPlotly().then(soon, () => (this.#drawn = "")), IDLE_MS));
  }

  #whenSeen(task) {
    this.#observer?.disconnect();
    this.#observer = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      this.#observer.disconnect();
      task();
    });
    this.#observer.observe(this);
  }

  #draw() {
    const jobs = timedJobs().slice(-config.chart.jobs);
    const { data, layout } = config.chart.figure;
    const traces = data.map((trace) => ({
      ...trace,
      name: t(`stage.${trace.name}`),
      x: jobs.map((job) => job.job_id),
      y: jobs.map((job) => job.timings_ms[trace.name]),
      hovertemplate: `%{fullData.name} %{y:,.1f} ms <i>${methodOf(trace.name)}</i><extra></extra>`,
    }));
    const times = jobs.map((job) => clock(job.submitted_unix_s));
    const slots = Math.max(jobs.length, LEAST_SLOTS);
    const range = [-0.5, slots - 0.5];
    const xaxis = { ...layout.xaxis, range, tickvals: jobs.map((job) => job.job_id), ticktext: sparse(times, slots) };
    const scheme = dark.matches ? "dark" : "light";
    const template = config.chart.templates[scheme];
    const look = { displayModeBar: false, responsive: true };
    globalThis.Plotly.react(this.plot, traces, { ...layout, xaxis, template }, look);
    this.dataset.scheme = scheme;
  }
}

/** Times of day as far as there is room; the newest always. */
function sparse(labels, slots) {
  const every = Math.max(1, Math.ceil(slots / LABELS));
  return labels.map((label, place) => ((labels.length - 1 - place) % every === 0 ? label : ""));
}

customElements.define("zi-chart", Chart);
