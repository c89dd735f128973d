// Watches the server, hands each snapshot to the panels, and says what an operator says.

import { Timeline } from "./charts.js";
import { button, byId, element, mark, say } from "./dom.js";
import { plural, span } from "./format.js";
import { Events, Jobs, Nodes, Pipelines, Queue, Requests, Tiles, concerns } from "./panels.js";

const KEY = "autoglm-key";
const RETRY_MS = 1000;
// Without a snapshot for so long, what is shown is old.
const STALE_MS = 3500;
// Of what a server remembers, so much is kept here.
const MAX_POINTS = 4000;
const MAX_EVENTS = 2000;
// Drawing stops for a frame that has taken so long.
const FRAME_MS = 12;

const state = { points: [], events: [], heard: 0, snapshot: null, order: "oldest", stop: null, logged: null, due: [] };

const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

function headers() {
  return key.get() ? { authorization: `Bearer ${key.get()}` } : {};
}

const tiles = new Tiles();
const pipelines = new Pipelines();
const nodes = new Nodes((action, node) => relieve(action, node));
const queue = new Queue();
const jobs = new Jobs((_, job) => cancelJob(job));
const requests = new Requests((request) => openLog(request));
const events = new Events();
const timeline = new Timeline(byId("strips"), byId("moment"), (event) => events.point(event));

// --- what the server says

function take(snapshot) {
  const now = Date.now();
  const at = (ago) => now - ago;
  // The last point that is known is under way: its next version takes its place.
  const first = snapshot.points[0]?.number ?? Infinity;
  state.points = state.points.filter((point) => point.number < first);
  state.points.push(...snapshot.points.map((point) => ({ ...point, end: at(point.ago_ms) })));
  state.points.splice(0, state.points.length - MAX_POINTS);
  state.events.push(...snapshot.events.map((event) => ({ ...event, at: at(event.ago_ms) })));
  state.events.splice(0, state.events.length - MAX_EVENTS);
  Object.assign(state, { snapshot, heard: now });
  if (!state.due.length) requestAnimationFrame(draw);
  state.due.push(...PANELS.filter((panel) => !state.due.includes(panel)));
}

// In the order in which they stand.
const PANELS = [
  head,
  () => tiles.show(state.snapshot, state.points.filter((point) => point.end > state.heard - 3600e3)),
  () => timeline.show(state.points, state.events, state.heard),
  () => pipelines.show(state.snapshot),
  () => nodes.show(state.snapshot),
  () => queue.show(state.snapshot),
  () => jobs.show(state.snapshot),
  () => requests.show(state.snapshot),
  () => events.show(state.events),
];

// Panels that are new take longer than a frame may: what is left is drawn in the next one.
function draw() {
  const began = performance.now();
  try {
    while (state.due.length && performance.now() - began < FRAME_MS) state.due.shift()();
  } finally {
    // Also when one of them fails: nobody else asks for a frame while any are due.
    if (state.due.length) requestAnimationFrame(draw);
  }
  // For whoever measures.
  performance.measure("autoglm-frame", { start: began, end: performance.now() });
  if (performance.getEntriesByName("autoglm-frame").length > 600) performance.clearMeasures("autoglm-frame");
}

function head() {
  const { snapshot } = state;
  say(byId("model"), `${snapshot.model} · ${snapshot.version} · up ${span(snapshot.up_s * 1000)}`);
  byId("model").title = snapshot.fingerprint;
  const said = snapshot.ready ? "serving" : "not ready";
  say(byId("state"), said);
  byId("state").className = `pill ${snapshot.ready ? "good" : "bad"}`;
  document.title = `${snapshot.ready ? "" : "✕ "}${snapshot.model} – AutoGLM`;
  concerns(snapshot);
  alive();
}

async function watch() {
  for (;;) {
    const stop = new AbortController();
    state.stop = stop;
    try {
      const query = `?order=${state.order}`;
      const answer = await fetch(`/v1/admin/snapshot/events${query}`, { headers: headers(), signal: stop.signal, cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) {
        await refused(answer);
        continue;
      }
      if (!answer.ok) throw new Error(`${answer.status}`);
      // Whoever begins anew is told all.
      Object.assign(state, { points: [], events: [] });
      await listen(answer.body);
    } catch (cause) {
      if (!stop.signal.aborted) state.trouble = String(cause.message ?? cause);
    }
    if (!stop.signal.aborted) await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

async function listen(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    // Large events come in many pieces: they are joined once, at the end of an event.
    let rest = value;
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      pieces.push(rest.slice(0, end));
      rest = rest.slice(end + 2);
      event(pieces.join(""));
      pieces = [];
    }
    pieces.push(rest);
  }
}

function event(text) {
  const data = text.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
  if (!data.length) return;
  state.trouble = "";
  take(JSON.parse(data.join("\n")));
}

async function refused(answer) {
  const said = await answer.json().catch(() => null);
  state.trouble = said?.error?.message ?? `${answer.status}`;
  say(byId("state"), "needs a key");
  byId("state").className = "pill warn";
  byId("concerns").replaceChildren(element("div", "concern warn",
    element("span", "level", "API key"), element("b", "", "this server wants to know who asks"), element("span", "hint", state.trouble)));
  delete byId("concerns").dataset.key;
  await askForKey();
}

function alive() {
  const since = Date.now() - state.heard;
  const isStale = since > STALE_MS;
  const host = byId("live");
  host.classList.toggle("stale", isStale);
  const why = state.trouble ? `: ${state.trouble}` : "";
  say(host, !state.heard ? (state.trouble || "connecting") : isStale ? `no word for ${span(since)}${why}` : "live");
  document.body.classList.toggle("stale", isStale && state.heard > 0);
}

// --- what an operator says

let toastTimer = 0;

function toast(text, isBad = false) {
  const host = byId("toast");
  say(host, text);
  host.className = isBad ? "seen bad" : "seen";
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (host.className = ""), 6000);
}

function ask(title, text) {
  const dialog = byId("ask-dialog");
  say(byId("ask-title"), title);
  say(byId("ask-text"), text);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

function askForKey() {
  const dialog = byId("key-dialog");
  byId("key-input").value = key.get();
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      if (dialog.returnValue === "use") key.set(byId("key-input").value.trim());
      if (dialog.returnValue === "forget") key.set("");
      byId("key-input").value = "";
      resolve(dialog.returnValue);
    }, { once: true });
  });
}

async function tell(method, path, done) {
  try {
    const answer = await fetch(path, { method, headers: headers() });
    const said = await answer.json().catch(() => null);
    if (!answer.ok) throw new Error(said?.error?.message ?? `the server answers ${answer.status}`);
    toast(done(said));
    return said;
  } catch (cause) {
    toast(cause.message, true);
    return null;
  }
}

const CONSEQUENCES = {
  cordon: "Nothing new is placed on it; what it has goes on.",
  drain: "What it has goes elsewhere. Answers under way get their time to end, then they move.",
  uncordon: "It is used again for what is placed from now on.",
};

async function relieve(action, node) {
  const name = node.hostname ? `${node.hostname} (${node.node})` : node.node;
  if (!await ask(`${action[0].toUpperCase()}${action.slice(1)} ${name}?`, CONSEQUENCES[action])) return;
  await tell("POST", `/v1/admin/${action}/${node.node}`, (said) => `node ${said.node} is ${said.duty}`);
}

async function cancelJob(job) {
  if (!await ask(`Cancel ${job.id}?`, "What is answered stays, the rest is left.")) return;
  await tell("POST", `/v1/batches/${encodeURIComponent(job.id)}/cancel`, (said) => `batch job ${said.id} is ${said.status}`);
}

async function cancelRequest(id) {
  if (!await ask(`Cancel request ${id}?`, "Its client is told that it was cancelled.")) return;
  const said = await tell("DELETE", `/v1/requests/${id}`, (it) => `request ${id} is ${it.state}`);
  if (said) showLog(said);
}

// --- the log of one request, asked for while it is shown

function openLog(request) {
  state.logged = request.id;
  byId("log").hidden = false;
  say(byId("log-title"), `Request ${request.id}`);
  byId("log-body").replaceChildren(element("p", "note", "asking"));
  refreshLog();
}

function closeLog() {
  state.logged = null;
  byId("log").hidden = true;
}

async function refreshLog() {
  const id = state.logged;
  if (!id) return;
  try {
    const answer = await fetch(`/v1/requests/${id}`, { headers: headers(), cache: "no-store" });
    const said = await answer.json();
    if (state.logged !== id) return;
    if (!answer.ok) throw new Error(said.error?.message ?? answer.status);
    showLog(said);
  } catch (cause) {
    if (state.logged === id) byId("log-body").replaceChildren(element("p", "note", cause.message));
  }
}

function showLog(story) {
  const isOpen = ["waiting", "running"].includes(story.state);
  byId("log-cancel").hidden = !isOpen;
  const line = (at, choice, what, why, tone = "") => element("li", tone, element("span", "at", span(at)),
    element("span", "choice", choice == null ? "all" : `#${choice}`), element("b", "", what), element("span", "why", why));
  const decisions = story.decisions.map((it) => line(it.at_ms, it.choice, it.what, it.why));
  const waiting = story.waiting.map((it) => line(it.waited_ms, it.choice, "waits",
    `${it.why}; ${plural(it.num_before, "sequence")} before it, at priority ${it.priority}`, "waits"));
  const forgotten = story.num_forgotten ? [element("p", "note", `${plural(story.num_forgotten, "older decision")} forgotten`)] : [];
  byId("log-body").replaceChildren(
    element("p", "note", `${story.state}, priority ${story.priority}, ${span(story.age_ms)} old`),
    ...forgotten, element("ol", "decisions", ...decisions, ...waiting));
}

// --- switches

function switches(host, choices, chosen, choose) {
  const buttons = choices.map(([label, value]) => button(label, "", () => {
    buttons.forEach((it) => mark(it, "aria-pressed", it === made.get(value)));
    choose(value);
  }));
  const made = new Map(choices.map(([, value], at) => [value, buttons[at]]));
  buttons.forEach((it) => mark(it, "aria-pressed", it === made.get(chosen)));
  host.append(...buttons);
}

switches(byId("spans"), [["5 min", 300e3], ["15 min", 900e3], ["1 h", 3600e3]], 3600e3, (spanMs) => {
  timeline.maxMs = spanMs;
  timeline.draw();
});
switches(byId("orders"), [["Oldest", "oldest"], ["Newest", "newest"]], "oldest", (order) => {
  state.order = order;
  state.stop?.abort();
});

const THEMES = ["auto", "light", "dark"];

function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  localStorage.setItem("autoglm-theme", name);
  say(byId("theme"), `Theme: ${name}`);
}

byId("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  theme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});
theme(THEMES.includes(localStorage.getItem("autoglm-theme")) ? localStorage.getItem("autoglm-theme") : "auto");

byId("key").addEventListener("click", async () => {
  if (await askForKey()) state.stop?.abort();
});
byId("log-close").addEventListener("click", closeLog);
byId("log-cancel").addEventListener("click", () => cancelRequest(state.logged));
document.addEventListener("keydown", (pressed) => {
  if (pressed.key === "Escape" && !document.querySelector("dialog[open]")) closeLog();
});
setInterval(() => {
  alive();
  if (!document.hidden) refreshLog();
}, 1000);
watch();
