// The form's other half. Gradio holds the values and carries them to the handlers; here are the words in the language
// of the page, what is remembered, the keys that generate, what is announced while it is written, and the answers.
// Gradio calls `globalThis.zimage.*`.

import { config } from "./config.js";
import { activeJobs, currentJob, model, select, state, subscribe } from "./store.js";
import { currentLanguage, hasText, onLanguage, t } from "./texts.js";
import { clearMistakes, mistake, toast } from "./toasts.js";

const FORM_KEY = "zimage.form";
const CLIENT_KEY = "zimage.client";
const ENCODED = new Set(["prompt", "negative", "guidance"]); // what the encoding of a prompt depends on
const PAUSE_MS = 300; // in writing
const IN_COMPOSITION = 229; // keyCode of keys that go to an input method, where isComposing comes too late
const UNKNOWN = "unknown";
const KEPT_BY_PROFILE = new Set(["steps", "guidance", "size"]);
const FIELD_OF_PARAM = { num_inference_steps: "steps", num_images_per_prompt: "count", negative_prompt: "negative" };

const page = (globalThis.zimage ??= {});
const remembered = { byProfile: {}, ...readJson(FORM_KEY) };
const pendingValues = new Map(); // what the next `form` event is to put into the form
let filled = false;
let pause = 0; // the timer of one
let composing = false; // by an input method: what stands there is not what is meant
let trial = ""; // of an example that was clicked: "filling" the form, then "asked" until the server answers

// ---- values --------------------------------------------------------------------------------------------------------

function readJson(key) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? {};
  } catch {
    return {};
  }
}

function profile() {
  return model()?.profile ?? null;
}

/** Where `name` is kept; what depends on the model apart for each kind of model, and apart until it is known. */
function drawerOf(name) {
  const { byProfile } = remembered;
  if (!KEPT_BY_PROFILE.has(name)) return remembered;
  const known = profile()?.name;
  if (!known) return (byProfile[UNKNOWN] ??= {});
  byProfile[known] = { ...byProfile[known], ...byProfile[UNKNOWN] };
  delete byProfile[UNKNOWN];
  return byProfile[known];
}

export function recall(name) {
  return drawerOf(name)[name];
}

/** Keeps `value`; what is as it would be anyway is no choice and is not kept. */
export function remember(name, value) {
  const kept = drawerOf(name);
  if (value === defaultOf(name)) delete kept[name];
  else kept[name] = value;
  localStorage.setItem(FORM_KEY, JSON.stringify(remembered));
}

export function sizes() {
  return profile()?.sizes ?? config.sizes;
}

/** What the model wants where nothing was chosen; undefined where it has no say. */
export function defaultOf(name) {
  const { num_inference_steps: steps = config.steps, guidance_scale: guidance = 0 } = profile() ?? {};
  return { steps, guidance, size: sizes()[0].join("x") }[name];
}

function clientId() {
  const known = localStorage.getItem(CLIENT_KEY);
  if (known) return known;
  const bytes = [...crypto.getRandomValues(new Uint8Array(12))];
  const fresh = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  localStorage.setItem(CLIENT_KEY, fresh);
  return fresh;
}

/** Puts values into Gradio's components through the `form` event. */
function fill(values) {
  for (const [name, value] of Object.entries(values)) pendingValues.set(name, value);
  page.fillForm?.();
}

export function examples() {
  return profile()?.examples ?? config.examples;
}

/** Puts an example into the form and has it made; a second click on the way there is none. */
export function tryPrompt(prompt) {
  if (trial) return;
  trial = "filling";
  fill({ prompt });
}

export function focusPrompt() {
  promptBox()?.focus();
}

export function reuseSeed(seed) {
  fill({ seed: String(seed) });
  toast(t("seed.reused", { seed: String(seed) }));
}

function restore() {
  filled = true;
  for (const name of ["prompt", "negative", "seed", "count"]) {
    const value = recall(name);
    if (value !== undefined && value !== null) pendingValues.set(name, value);
  }
}

let knownProfile = null;

/** The model has told how it wants to be used: its steps and guidance, unless the person chose others. */
function adapt() {
  const next = profile();
  if (!next || next.name === knownProfile) return;
  knownProfile = next.name;
  fill({
    steps: recall("steps") ?? next.num_inference_steps,
    guidance: recall("guidance") ?? next.guidance_scale,
  });
  document.documentElement.toggleAttribute("data-zi-guided", next.takes_negative_prompt);
  announceSoon();
}

/** On a GPU encoding begins when the writing pauses. */
function announceSoon() {
  clearTimeout(pause);
  if (!composing && model()?.device.startsWith("cuda") && recall("prompt")) pause = setTimeout(announce, PAUSE_MS);
}

/** Nobody waits for an answer, nor hears of a failure. */
function announce() {
  const draft = {
    prompt: recall("prompt"),
    negative_prompt: recall("negative") ?? "",
    guidance_scale: recall("guidance") ?? defaultOf("guidance"),
  };
  const headers = { "Content-Type": "application/json" };
  fetch("/api/draft", { method: "POST", headers, body: JSON.stringify(draft) }).catch(() => {});
}

function onComposition(event) {
  composing = event.type === "compositionstart";
  announceSoon();
}

// ---- what Gradio calls ---------------------------------------------------------------------------------------------

/** The updates of all components with words, in the order that the page was built with. */
page.form = () => {
  if (!filled) restore();
  const updates = config.form.fields.map((name) => {
    const update = { __type__: "update", label: t(`form.${name}`) };
    if (hasText(`form.${name}.placeholder`)) update.placeholder = t(`form.${name}.placeholder`);
    if (pendingValues.has(name)) update.value = pendingValues.get(name);
    return update;
  });
  pendingValues.clear();
  nameButtons();
  document.documentElement.dataset.ziReady = currentLanguage();
  return [...updates, ...config.form.buttons.map((name) => ({ __type__: "update", value: t(`form.${name}`) }))];
};

/** The form holds what `form` gave it. */
page.filled = () => {
  if (trial !== "filling") return;
  trial = "asked";
  page.generate();
};

page.remember = (name, value) => {
  if (!filled) return;
  remember(name, value);
  if (ENCODED.has(name)) announceSoon();
};

page.submitting = (values) => {
  clearTimeout(pause);
  select(null);
  clearMistakes();
  return [...values.slice(0, -1), JSON.stringify({ client: clientId() })];
};

page.cancelling = () => currentJob()?.job_id ?? "";

page.generate = () => document.getElementById("zi-generate")?.click();

page.lastSeed = (seed) => {
  const last = [...state.jobs.values()].reverse().find((job) => job.pictures.length);
  if (!last) toast(t("seed.none"));
  return last ? String(last.seed) : seed;
};

page.answered = (answer) => {
  trial = "";
  if (!answer?.error) return;
  const { message, hint, code, param } = answer.error;
  mistake(hasText(`error.${code}`) ? t(`error.${code}`) : t("error.error"), message, hint);
  document.querySelector(`#zi-${FIELD_OF_PARAM[param] ?? param} :is(textarea, input)`)?.focus();
};

page.refused = () => {
  trial = "";
  mistake(t("error.refused"), t("error.refused.hint"));
};

// ---- keys, names, state --------------------------------------------------------------------------------------------

function promptBox() {
  return document.querySelector("#zi-prompt textarea");
}

/** Enter in the prompt and Ctrl+Enter anywhere generate; Shift+Enter is a new line; Enter may end an input method. */
function onKey(event) {
  if (event.key !== "Enter" || event.isComposing || event.keyCode === IN_COMPOSITION) return;
  const inPrompt = event.target === promptBox();
  if (!event.ctrlKey && !event.metaKey && (!inPrompt || event.shiftKey)) return;
  event.preventDefault();
  page.generate();
}

/** Gradio's text box takes Shift+Enter for a submission and would keep the new line back. */
function keepNewLine(event) {
  if (event.key === "Enter" && event.target === promptBox()) event.stopPropagation();
}

function nameButtons() {
  for (const name of config.form.buttons) {
    document.getElementById(`zi-${name}`)?.setAttribute("title", t(`form.${name}.title`));
  }
}

function showActivity() {
  const root = document.documentElement.dataset;
  const current = currentJob();
  root.ziBusy = current ? current.phase : "";
  root.ziWaiting = String(activeJobs().filter((job) => job.phase === "queued").length);
}

export function startForm() {
  addEventListener("keydown", onKey, { capture: true });
  addEventListener("keypress", keepNewLine, { capture: true });
  for (const type of ["compositionstart", "compositionend"]) addEventListener(type, onComposition);
  addEventListener("zimage-form", () => page.fillForm(), { once: true });
  page.fillForm?.();
  onLanguage(() => page.fillForm?.());
  subscribe(["jobs"], showActivity);
  subscribe(["readiness"], adapt);
}
