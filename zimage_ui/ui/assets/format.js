// Numbers for people, in the language of the page. A sensor that says nothing is "n/a".

import { currentLanguage, t } from "./texts.js";

const MIB = 2 ** 20;
const GIB = 2 ** 30;

function number(value, digits = 0) {
  return value.toLocaleString(currentLanguage(), { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function withUnit(value, unit, digits = 0) {
  return value === null || value === undefined ? t("none") : `${number(value, digits)}\u00a0${unit}`;
}

export function count(value) {
  return value === null || value === undefined ? t("none") : number(value);
}

/** Milliseconds; tenths below ten. */
export function ms(value) {
  return withUnit(value, "ms", value !== null && value < 10 ? 1 : 0);
}

/** Seconds from milliseconds, for what ticks while one waits. */
export function seconds(valueMs) {
  return withUnit(valueMs / 1000, "s", valueMs < 10_000 ? 1 : 0);
}

export function gib(bytes) {
  return bytes === null || bytes === undefined ? t("none") : number(bytes / GIB, bytes < 100 * GIB ? 1 : 0);
}

export function fileSize(bytes) {
  return bytes < MIB ? withUnit(bytes / 1024, "KiB") : withUnit(bytes / MIB, "MiB", 1);
}

export function memorySize(bytes) {
  return bytes < GIB ? withUnit(bytes / MIB, "MiB") : withUnit(bytes / GIB, "GiB", 1);
}

export function percent(share) {
  return share === null || share === undefined ? t("none") : `${number(share)}%`;
}

export function clock(unixSeconds) {
  return new Date(unixSeconds * 1000).toLocaleTimeString(currentLanguage(), { hour12: false });
}

/** "16:9" for 1280 x 720; the nearest well-known ratio where the exact one is clumsy. */
export function aspect(width, height) {
  const divisor = gcd(width, height);
  const [across, down] = [width / divisor, height / divisor];
  if (across <= 21 && down <= 21) return `${across}:${down}`;
  const known = [[1, 1], [5, 4], [4, 3], [3, 2], [16, 10], [16, 9], [2, 1], [21, 9]];
  const wide = width >= height;
  const ratio = wide ? width / height : height / width;
  const [long, short] = known.reduce((best, each) =>
    Math.abs(each[0] / each[1] - ratio) < Math.abs(best[0] / best[1] - ratio) ? each : best,
  );
  return wide ? `${long}:${short}` : `${short}:${long}`;
}

function gcd(a, b) {
  return b ? gcd(b, a % b) : a;
}
