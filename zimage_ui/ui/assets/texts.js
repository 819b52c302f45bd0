// Words: the catalogue came with the page; the language is the person's choice, else the setting, else the browser's.

import { config } from "./config.js";

const STORAGE_KEY = "zimage.language";
const TAGS = { en: "en", zh: "zh-Hans" };

const changes = new EventTarget();
let language = chosen() ?? (config.language === "auto" ? fromBrowser() : config.language);
document.documentElement.lang = TAGS[language];

function chosen() {
  const stored = localStorage.getItem(STORAGE_KEY);
  return stored in TAGS ? stored : undefined;
}

function fromBrowser() {
  const wanted = navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase());
  return wanted.find((tag) => tag in TAGS) ?? "en";
}

export function currentLanguage() {
  return language;
}

export function setLanguage(next) {
  if (!(next in TAGS) || next === language) return;
  language = next;
  localStorage.setItem(STORAGE_KEY, next);
  document.documentElement.lang = TAGS[next];
  changes.dispatchEvent(new Event("change"));
}

/** Calls `listener` after each change of language; returns what ends that. */
export function onLanguage(listener) {
  changes.addEventListener("change", listener);
  return () => changes.removeEventListener("change", listener);
}

/** The text of `key` with `{name}` replaced by `values.name`. */
export function t(key, values = {}) {
  return config.texts[language][key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

export function hasText(key) {
  return key in config.texts[language];
}
