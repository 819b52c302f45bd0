// What the page knows, and its one stream. Elements subscribe to topics: connection, readiness, shapes, history,
// telemetry, jobs, pictures, selection. All truth is the server's; after a reload or a sleep the stream tells it again.

const TOPICS = ["connection", "readiness", "shapes", "history", "telemetry", "jobs", "pictures", "selection"];
const STRIP_PICTURES = 30;
const KEPT_JOBS = 80;
const KEPT_PICTURES = 300;
const RETRY_MS = 2000;
const PRESENT_STATE_MS = 1500; // by then a new connection has told of every job that there is
const ENDED = new Set(["done", "failed", "cancelled"]);

const subscribers = Object.fromEntries(TOPICS.map((topic) => [topic, new Set()]));

export const state = {
  connection: "connecting", // or "open", "lost"
  readiness: null,
  shapes: [], // which sizes are prepared
  history: null, // what was measured before this connection
  telemetry: null,
  telemetryHeardAt: -Infinity, // performance.now()
  jobs: new Map(), // job_id -> job, in the order of their submission
  pictures: new Map(), // picture_id -> picture of the library or of a job
  listed: false, // whether the library has been asked what it holds
  selection: null, // picture_id that the person chose to look at; null follows what happens
};

/** Calls `listener(topic)` after each change of `topics`; returns what ends that. */
export function subscribe(topics, listener) {
  for (const topic of topics) subscribers[topic].add(listener);
  return () => topics.forEach((topic) => subscribers[topic].delete(listener));
}

function publish(topic) {
  for (const listener of [...subscribers[topic]]) listener(topic);
}

// ---- what follows from it ------------------------------------------------------------------------------------------

export function isActive(job) {
  return !ENDED.has(job.phase);
}

export function activeJobs() {
  return [...state.jobs.values()].filter(isActive);
}

/** The job that occupies the device or, failing that, the next one; what Cancel cancels. */
export function currentJob() {
  const active = activeJobs();
  return active.find((job) => job.phase === "running") ?? active.find((job) => job.phase === "queued") ?? null;
}

/** Jobs that were measured to their end, the oldest first. */
export function timedJobs() {
  return [...state.jobs.values()].filter((job) => job.timings_ms);
}

export function newestPictures(limit = STRIP_PICTURES) {
  return [...state.pictures.values()].sort((a, b) => (a.picture_id < b.picture_id ? 1 : -1)).slice(0, limit);
}

export function jobOfPicture(pictureId) {
  return [...state.jobs.values()].find((job) => job.pictures.some((picture) => picture.picture_id === pictureId));
}

/** What the canvas is about: {job} or {picture}, or {} when there is nothing yet. */
export function focus() {
  const chosen = state.selection && state.pictures.get(state.selection);
  if (chosen) return { picture: chosen };
  const current = currentJob() ?? activeJobs().find((job) => !job.pictures.length);
  if (current) return { job: current };
  const shown = [...state.jobs.values()].reverse().find((job) => job.phase === "failed" || job.pictures.length);
  const [newest] = newestPictures(1);
  const isOlder = shown?.pictures.length && newest && newest.picture_id > shown.pictures.at(-1).picture_id;
  if (shown && !isOlder) return { job: shown };
  return newest ? { picture: newest } : {};
}

export function model() {
  return state.readiness?.model ?? null;
}

export function select(pictureId) {
  state.selection = pictureId;
  publish("selection");
}

// ---- the stream ----------------------------------------------------------------------------------------------------

let source = null;
let retry = 0;
let sweep = 0;
let unconfirmed = new Set(); // jobs known before this connection that it has not told of

/** Keeps one stream open while the page can be seen. */
export function start() {
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();
}

function open() {
  if (source || document.hidden) return;
  clearTimeout(retry);
  source = new EventSource("/telemetry");
  source.onopen = opened;
  source.onerror = broken;
  source.addEventListener("readiness", (event) => receiveReadiness(JSON.parse(event.data)));
  source.addEventListener("history", (event) => receiveHistory(JSON.parse(event.data)));
  source.addEventListener("telemetry", (event) => receiveTelemetry(JSON.parse(event.data)));
  source.addEventListener("job", (event) => receiveJob(JSON.parse(event.data)));
}

function close() {
  clearTimeout(retry);
  source?.close();
  source = null;
}

function opened() {
  unconfirmed = new Set(state.jobs.keys());
  clearTimeout(sweep);
  sweep = setTimeout(forgetVanished, PRESENT_STATE_MS);
  setConnection("open");
  fetchPictures();
}

function broken() {
  setConnection("lost");
  if (source?.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
  close();
  retry = setTimeout(open, RETRY_MS);
}

function setConnection(next) {
  if (state.connection === next) return;
  state.connection = next;
  publish("connection");
}

/** Shapes go on changing for a while after all else is as it stays; most elements need not hear of it. */
function receiveReadiness({ shapes, ...readiness }) {
  const known = JSON.stringify(state.readiness) === JSON.stringify(readiness);
  state.shapes = shapes;
  if (!known) state.readiness = readiness;
  publish(known ? "shapes" : "readiness");
}

function receiveHistory(history) {
  state.history = history;
  publish("history");
}

function receiveTelemetry(telemetry) {
  state.telemetry = telemetry;
  state.telemetryHeardAt = performance.now();
  publish("telemetry");
}

function receiveJob(job) {
  const known = state.jobs.get(job.job_id);
  unconfirmed.delete(job.job_id);
  if (known && known.revision > job.revision) return;
  // The last preview stays until the picture is there: between the two nothing is sent to look at.
  const preview = job.preview ?? (isActive(job) && !job.pictures.length ? (known?.preview ?? null) : null);
  state.jobs.set(job.job_id, { ...job, preview, heardAt: performance.now() });
  forgetOldest();
  const fresh = job.pictures.some((picture) => !state.pictures.has(picture.picture_id));
  for (const picture of job.pictures) keepPicture({ ...picture, prompt: job.prompt, untrained: job.untrained });
  publish("jobs");
  if (fresh) publish("pictures");
}

function keepPicture(picture) {
  state.pictures.set(picture.picture_id, { ...state.pictures.get(picture.picture_id), ...picture });
  if (state.pictures.size <= KEPT_PICTURES) return;
  const [oldest] = [...state.pictures.keys()].sort(); // ids sort by time
  if (oldest !== state.selection) state.pictures.delete(oldest);
}

/** A server that was started anew knows nothing of its former jobs; here they would run for ever. */
function forgetVanished() {
  const vanished = [...unconfirmed].filter((jobId) => state.jobs.has(jobId) && isActive(state.jobs.get(jobId)));
  for (const jobId of vanished) state.jobs.delete(jobId);
  if (vanished.length) publish("jobs");
}

function forgetOldest() {
  for (const [jobId, job] of state.jobs) {
    if (state.jobs.size <= KEPT_JOBS) return;
    if (!isActive(job)) state.jobs.delete(jobId);
  }
}

async function fetchPictures() {
  const response = await fetch(`/api/pictures?limit=${STRIP_PICTURES}`).catch(() => null);
  // Without an answer the strip keeps what it has; the header says that the connection is lost.
  const rows = response?.ok ? (await response.json()).pictures : [];
  for (const row of rows) keepPicture({ ...row, untrained: row.metadata.model?.trained === false });
  state.listed = true;
  publish("pictures");
}
