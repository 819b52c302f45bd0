// Where a picture's time went, and what else is known of it.

import { reuseSeed } from "./compose.js";
import { button, copyText, h, icon } from "./dom.js";
import { aspect, count, fileSize, ms } from "./format.js";
import { jobOfPicture, model } from "./store.js";
import { t } from "./texts.js";
import { toast } from "./toasts.js";

const STAGES = ["queue", "encode", "sample", "decode", "save", "other"];
const VISIBLE_MS = 0.05;
const GPU_STAGES = ["encode", "sample", "decode"];

/** The facts of what is shown: from its job while that is known, else from what the picture's file says of itself. */
export function factsOf(job, picture) {
  const from = job ?? jobOfPicture(picture.picture_id);
  return from ?? { ...picture.metadata, untrained: picture.untrained, embedding_cache_hit: null };
}

/** The rows under finished pictures of one job. */
export function accountOf(facts, pictures) {
  const [picture] = pictures;
  return [
    h("div.zi-facts", {},
      h("span.zi-prompt-line", { title: facts.prompt }, facts.prompt),
      h("span.zi-actions", {},
        button(t("action.copy"), () => copyPrompt(facts.prompt), { icon: "copy" }),
        link(t("action.open"), picture.url, "open", { target: "_blank", rel: "noopener" }),
        link(t("action.download"), `${picture.url}?download=1`, "download", { download: "" }),
      ),
    ),
    h("div.zi-chips", {}, chips(facts, pictures)),
    ...(facts.timings_ms ? [bar(facts.timings_ms), legend(facts.timings_ms)] : [pending()]),
  ];
}

function chips(facts, pictures) {
  const [picture] = pictures;
  return [
    facts.truncated_tokens > 0 && truncated(facts),
    hasShrunk(facts) && warning(t("fact.plan", { plan: facts.memory_plan }), t("fact.plan.how")),
    seedChip(pictures),
    chip(`${picture.width} × ${picture.height}`, t("fact.size.how", { ratio: aspect(picture.width, picture.height) })),
    facts.shape_warm === false && chip(t("fact.cold"), t("fact.cold.how")),
    facts.nfe > 0 && chip(t("fact.nfe", { n: count(facts.nfe) }), t("fact.nfe.how")),
    precisionChip(facts.precision),
    cacheChip(facts),
    facts.preview_ms > 0 && chip(t("fact.previews", { time: ms(facts.preview_ms) }), t("fact.previews.how")),
    fileChip(picture),
  ];
}

function chip(words, title) {
  return h("span.zi-chip", { title }, words);
}

function seedChip(pictures) {
  const [first, last] = [pictures[0].seed, pictures.at(-1).seed];
  const words = first === last ? t("fact.seed", { seed: first }) : t("fact.seeds", { first, last });
  const reuse = { type: "button", title: t("fact.seed.how"), onclick: () => reuseSeed(first) };
  return h("button.zi-chip", reuse, words, icon("reuse"));
}

function fileChip({ size_bytes: bytes, image_format: format, path }) {
  return bytes > 0 && chip(`${format.toUpperCase()} ${fileSize(bytes)}`, path);
}

/** Files from before it was kept are exact. */
function precisionChip(precision) {
  return chip(t(`precision.${precision ?? "exact"}`), t("fact.precision.how"));
}

function cacheChip({ embedding_cache_hit: hit, encoded_ahead_ms: ahead }) {
  if (hit === null || hit === undefined) return null;
  if (ahead > VISIBLE_MS) return chip(t("fact.ahead", { time: ms(ahead) }), t("fact.ahead.how"));
  return chip(t(hit ? "fact.cache.hit" : "fact.cache.miss"), t("fact.cache.how"));
}

function truncated({ truncated_tokens: cut, prompt_tokens: kept }) {
  return warning(t("fact.truncated", { n: count(cut) }), t("fact.truncated.how", { kept: count(kept) }));
}

/** Whether a job of the model that is loaded had to do with less memory than planned. */
function hasShrunk({ job_id: ofJob, memory_plan: plan }) {
  return Boolean(ofJob && plan && model() && plan !== model().memory_plan);
}

function warning(words, title) {
  return h("span.zi-chip.zi-warn", { title }, icon("alert"), words);
}

/** How the time of a stage was taken: by the GPU's own events, or by the host's clock. */
export function methodOf(stage) {
  const onGpu = model()?.device.startsWith("cuda") && GPU_STAGES.includes(stage);
  return t(onGpu ? "method.cuda" : "method.monotonic");
}

function bar(timings) {
  const parts = STAGES.filter((stage) => timings[stage] > VISIBLE_MS).map((stage) => {
    const title = `${t(`stage.${stage}`)}: ${ms(timings[stage])} (${methodOf(stage)})`;
    return h("span", { title, style: { "flex-grow": timings[stage] }, dataset: { stage } });
  });
  return h("div.zi-bar", { "aria-hidden": "true" }, parts);
}

function legend(timings) {
  const entry = (stage, properties) => {
    const known = timings[stage] !== undefined;
    return known && h("li", properties, t(`stage.${stage}`), " ", h("b", {}, ms(timings[stage])));
  };
  const stages = STAGES.map((stage) => entry(stage, { title: methodOf(stage), dataset: { stage } }));
  return h("ul.zi-legend", {}, stages, entry("total", { title: t("method.total"), class: "zi-total" }));
}

function pending() {
  return h("p.zi-facts.zi-faint", {}, t("timings.pending"));
}

function link(words, href, iconName, attributes) {
  return h("a.zi-quiet.zi-icon-button", { href, title: words, "aria-label": words, ...attributes }, icon(iconName));
}

async function copyPrompt(prompt) {
  toast((await copyText(prompt)) ? t("copied") : t("copied.not"));
}
