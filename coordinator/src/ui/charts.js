// Curves of the last hour over one time axis, and what happened meanwhile.

import { element, mark, say, svg } from "./dom.js";
import { clock, count, milliseconds, number, percent, span } from "./format.js";

const HEIGHT = 74;
const LANE = 34;
const PAD = 7;
// Where the values of the lines stand.
const GUTTER = 54;
// Between two marks, so that one doesn't hide another. The newest have one, as many as there is
// room for.
const APART = 16;
// What there is takes the whole width: at least this much time, and more by steps of so much.
const LEAST_MS = 20e3;
const STEP_MS = 5e3;

// What a kind of event looks like: a shape, which is told apart without its colour.
export const KINDS = {
  joined: { shape: "M-4,3 L0,-4 L4,3 Z", tone: "good", says: "node joined" },
  left: { shape: "M-4,-3 L0,4 L4,-3 Z", tone: "plain", says: "node left" },
  lost: { shape: "M-4,-4 L4,4 M4,-4 L-4,4", tone: "bad", says: "node lost" },
  quarantined: { shape: "M-4,-4 H4 V4 H-4 Z M-4,-4 L4,4", tone: "bad", says: "node left out" },
  duty: { shape: "M-4,-4 H4 V4 H-4 Z", tone: "warn", says: "operator" },
  serves: { shape: "M-4,0 L-1,3 L4,-4", tone: "good", says: "pipeline serves" },
  moved: { shape: "M-4,0 H4 M1,-3 L4,0 L1,3", tone: "bad", says: "pipeline lost, work moved" },
  drained: { shape: "M0,-4 V3 M-3,0 L0,4 L3,0", tone: "plain", says: "pipeline drained" },
  scaled: { shape: "M-4,4 V0 M0,4 V-2 M4,4 V-5", tone: "info", says: "scaled" },
};

const rate = (field) => (point) => point[field] * 1000 / Math.max(1, point.took_ms);
const share = (part, all) => (point) => (point[all] > 0 ? point[part] / point[all] : null);

// A strip has a band of percentiles, or lines.
const STRIPS = [
  { name: "first_token", title: "First token", band: (p) => p.first_token_ms, says: milliseconds, log: true },
  { name: "between_tokens", title: "Between tokens", band: (p) => p.between_tokens_ms, says: milliseconds, log: true },
  {
    name: "throughput", title: "Tokens a second", says: number,
    lines: [["with prompts", rate("computed_tokens"), "b"], ["answers", rate("generated_tokens"), "a"]],
  },
  {
    name: "load", title: "Sequences", says: count,
    lines: [["waiting", (p) => p.waiting, "c"], ["running", (p) => p.running, "a"]],
  },
  {
    name: "cache", title: "KV cache", says: percent, max: 1,
    lines: [["held", (p) => p.kv_used, "a"], ["prefix hits", share("prefix_hits", "prefix_tokens"), "b"]],
  },
];

// The next of 1, 2, 5, 10, 20, 50 and so on.
function rounded(value) {
  const scale = 10 ** Math.floor(Math.log10(value));
  const digit = value / scale;
  return (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10) * scale;
}

// From a value to its place between top and bottom, and the values that are labelled.
function scaled(strip, values) {
  const [top, bottom] = [PAD, HEIGHT - PAD];
  if (strip.log) {
    let [least, most] = [Math.min(...values), Math.max(...values)];
    if (!values.length) [least, most] = [10, 1000];
    least = Math.max(0.01, least / 1.2);
    most = Math.max(most * 1.2, least * 4);
    const [from, to] = [Math.log10(least), Math.log10(most)];
    const place = (value) => bottom - (Math.log10(Math.max(value, least)) - from) / (to - from) * (bottom - top);
    const ticks = [];
    for (let tick = rounded(least); tick <= most; tick = rounded(tick * 1.01)) ticks.push(tick);
    const step = Math.ceil(ticks.length / 3);
    return { place, ticks: ticks.filter((_, at) => at % step === 0) };
  }
  const most = strip.max ?? rounded(Math.max(1, ...values));
  const place = (value) => bottom - value / most * (bottom - top);
  return { place, ticks: [0, most / 2, most] };
}

export class Timeline {
  constructor(host, moment, onEvent) {
    Object.assign(this, { moment, onEvent, points: [], events: [], maxMs: 3600e3, spanMs: LEAST_MS, width: 0, now: 0, at: null, chosen: -1 });
    this.strips = STRIPS.map((strip) => this.build(strip));
    this.lane = svg("svg", { class: "lane", tabindex: 0, role: "listbox", "aria-label": "Events: left and right go from one to the next" });
    this.axis = svg("g", { class: "axis" });
    this.marks = svg("g");
    this.laneCross = svg("line", { class: "cross", y1: 0, y2: LANE });
    this.lane.append(this.axis, this.marks, this.laneCross);
    const laneRow = element("div", "strip", element("div", "strip-head", element("b", "", "Events")), this.lane);
    host.append(...this.strips.map(({ row }) => row), laneRow);
    this.host = host;
    host.addEventListener("pointermove", (event) => this.hover(event));
    host.addEventListener("pointerleave", () => this.look(null));
    this.lane.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(([{ contentRect }]) => {
      this.width = contentRect.width;
      this.draw();
    }).observe(this.lane);
  }

  build(strip) {
    const plot = svg("svg", { class: "plot", role: "img" });
    const parts = { grid: svg("g", { class: "grid" }), hairs: svg("g", { class: "hairs" }), paths: [] };
    const series = strip.band ? ["p99", "p90", "p50"] : strip.lines.map(([, , tone]) => `line-${tone}`);
    parts.paths = series.map((kind) => svg("path", { class: kind }));
    parts.cross = svg("line", { class: "cross", y1: 0, y2: HEIGHT });
    plot.append(parts.grid, parts.hairs, ...parts.paths, parts.cross);
    const values = element("div", "values");
    const labels = strip.band ? ["p50", "p90", "p99"] : strip.lines.map(([label]) => label);
    const tones = strip.band ? ["p50", "p90", "p99"] : series;
    parts.values = labels.map((label, at) => {
      const value = element("b");
      values.append(element("span", `value ${tones[at]}`, element("i"), `${label} `, value));
      return value;
    });
    const head = element("div", "strip-head", element("b", "", strip.title), values);
    const row = element("div", "strip", head, plot);
    row.dataset.strip = strip.name;
    return { strip, plot, row, ...parts };
  }

  // `points` have the absolute time of their end, `events` theirs.
  show(points, events, now) {
    Object.assign(this, { points, events, now });
    this.draw();
  }

  draw() {
    const { width } = this;
    if (!width) return;
    this.spanMs = this.reach();
    const from = this.now - this.spanMs;
    this.x = (at) => (at - from) / this.spanMs * (width - GUTTER);
    this.shown = this.points.filter((point) => point.end > from);
    this.strips.forEach((parts) => this.drawStrip(parts, width));
    this.drawLane(width, from);
    this.look(this.at);
  }

  // How far back is shown: as far as anything is known, unless that is too far.
  reach() {
    const [point] = this.points;
    const began = Math.min(point ? point.end - point.took_ms : this.now, this.events[0]?.at ?? this.now);
    const known = Math.ceil((this.now - began) / STEP_MS) * STEP_MS;
    return Math.min(this.maxMs, Math.max(LEAST_MS, known));
  }

  drawStrip({ strip, plot, grid, hairs, paths }, width) {
    const middle = (point) => this.x(Math.max(point.end - point.took_ms / 2, this.now - this.spanMs));
    const columns = strip.band
      ? [0, 1, 2].map((at) => (point) => strip.band(point)?.[at] ?? null)
      : strip.lines.map(([, of]) => of);
    const table = this.shown.map((point) => [middle(point), ...columns.map((of) => of(point))]);
    const values = table.flatMap(([, ...row]) => row.filter((value) => value !== null && Number.isFinite(value)));
    const { place, ticks } = scaled(strip, strip.log ? values.filter((value) => value > 0) : values);
    // Stretches without a gap.
    const runs = (column) => {
      const found = [];
      let run = [];
      for (const row of table) {
        if (row[column] === null) {
          if (run.length) found.push(run);
          run = [];
        } else run.push(row);
      }
      if (run.length) found.push(run);
      return found;
    };
    const path = (row, column) => `${row[0].toFixed(1)},${place(row[column]).toFixed(1)}`;
    const line = (run, column) => (run.length === 1
      ? `M${(run[0][0] - 2).toFixed(1)},${place(run[0][column]).toFixed(1)} h4`
      : `M${run.map((row) => path(row, column)).join("L")}`);
    const area = (run, upper, lower) => {
      const wide = run.length === 1 ? [[run[0][0] - 2, ...run[0].slice(1)], [run[0][0] + 2, ...run[0].slice(1)]] : run;
      return `M${wide.map((row) => path(row, upper)).join("L")}L${wide.toReversed().map((row) => path(row, lower)).join("L")}Z`;
    };
    if (strip.band) {
      const all = runs(1);
      mark(paths[0], "d", all.map((run) => area(run, 3, 2)).join(""));
      mark(paths[1], "d", all.map((run) => area(run, 2, 1)).join(""));
      mark(paths[2], "d", all.map((run) => line(run, 1)).join(""));
    } else {
      strip.lines.forEach((_, at) => mark(paths[at], "d", runs(at + 1).map((run) => line(run, at + 1)).join("")));
    }
    const lines = ticks.map((tick) => svg("g", {},
      svg("line", { x1: 0, x2: width - GUTTER + 4, y1: place(tick).toFixed(1), y2: place(tick).toFixed(1) }),
      svg("text", { x: width - 2, y: (place(tick) + 3.5).toFixed(1) }, tick === 0 ? "0" : strip.says(tick))));
    grid.replaceChildren(...lines);
    const grave = this.events.filter((event) => KINDS[event.kind]?.tone === "bad" && event.at > this.now - this.spanMs);
    hairs.replaceChildren(...grave.slice(-50).map((event) => {
      const x = this.x(event.at).toFixed(1);
      return svg("line", { x1: x, x2: x, y1: 0, y2: HEIGHT });
    }));
    const last = this.shown.findLast((point) => columns[0](point) !== null);
    const said = last ? columns.map((of) => strip.says(of(last) ?? 0)).join(", ") : "nothing yet";
    mark(plot, "aria-label", `${strip.title}, newest: ${said}`);
  }

  drawLane(width, from) {
    const steps = [5e3, 10e3, 30e3, 60e3, 120e3, 300e3, 600e3, 900e3, 1800e3];
    const step = steps.find((it) => this.spanMs / it <= 7) ?? 3600e3;
    const ticks = [];
    for (let at = Math.ceil(from / step) * step; at < this.now; at += step) {
      const x = this.x(at);
      if (x < 20 || x > width - GUTTER) continue;
      ticks.push(svg("text", { x: x.toFixed(1), y: LANE - 3 }, step < 60e3 ? clock(at) : clock(at).slice(0, 5)));
    }
    this.axis.replaceChildren(...ticks);
    // Marks are made anew when there are others; otherwise they only move.
    const most = Math.max(0, Math.floor((width - GUTTER) / APART));
    const all = this.events.filter((event) => event.at > from);
    this.inLane = all.slice(Math.max(0, all.length - most));
    const key = [this.inLane.length, this.inLane[0]?.number, this.inLane.at(-1)?.number, this.chosen].join();
    if (key !== this.laneKey) {
      this.laneKey = key;
      this.marks.replaceChildren(...this.inLane.map((event, number) => this.glyph(event, number)));
    }
    // Where many are, older ones make way.
    let next = width;
    for (let number = this.inLane.length - 1; number >= 0; number -= 1) {
      next = Math.min(this.x(this.inLane[number].at), next - APART);
      mark(this.marks.children[number], "transform", `translate(${next.toFixed(1)},11)`);
    }
  }

  glyph(event, number) {
    const { shape, tone, says } = KINDS[event.kind] ?? KINDS.scaled;
    const isChosen = number === this.chosen;
    const glyph = svg("g", { class: `mark ${tone}${isChosen ? " chosen" : ""}`, role: "option", "aria-selected": isChosen },
      svg("title", {}, `${clock(event.at)} ${says}: ${event.node || (event.pipeline ?? "")} ${event.text}`),
      svg("circle", { r: 9 }), svg("path", { d: shape }));
    glyph.addEventListener("click", () => this.choose(number));
    return glyph;
  }

  choose(number) {
    const event = this.inLane[number];
    if (!event) return;
    this.chosen = number;
    this.draw();
    this.look(event.at);
    const { says } = KINDS[event.kind] ?? KINDS.scaled;
    say(this.moment, `${clock(event.at)} ${says} ${event.node} ${event.text}`);
    this.onEvent(event);
  }

  step(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    if (!(event.key in steps) || !this.inLane?.length) return;
    const last = this.inLane.length - 1;
    const next = this.chosen < 0 ? last : this.chosen + steps[event.key];
    this.choose(Math.max(0, Math.min(last, next)));
    event.preventDefault();
  }

  hover(event) {
    const box = this.lane.getBoundingClientRect();
    const x = event.clientX - box.left;
    const width = box.width - GUTTER;
    if (x < 0 || x > width) return this.look(null);
    this.look(this.now - this.spanMs + x / width * this.spanMs);
  }

  // What was at a moment; without one, what is now.
  look(at) {
    this.at = at;
    const near = (wanted) => this.shown?.reduce((best, point) => {
      const distance = Math.abs(point.end - point.took_ms / 2 - wanted);
      return best && best[0] <= distance ? best : [distance, point];
    }, null)?.[1];
    const point = at === null ? null : near(at);
    for (const parts of this.strips) {
      const { strip, cross, values } = parts;
      const has = (it) => (strip.band ? strip.band(it) : true);
      const told = point ?? this.shown?.findLast((it) => has(it) && it.took_ms > 2000) ?? this.shown?.at(-1);
      const said = told && (strip.band ? strip.band(told) : strip.lines.map(([, of]) => of(told)));
      values.forEach((value, number) => say(value, said?.[number] == null ? "–" : strip.says(said[number])));
      this.cross(cross, point);
    }
    this.cross(this.laneCross, point);
    if (point) say(this.moment, `${clock(point.end)}, ${span(this.now - point.end)} ago`);
    else if (this.chosen < 0) say(this.moment, "");
  }

  cross(line, point) {
    line.classList.toggle("seen", Boolean(point));
    if (!point) return;
    const x = this.x(point.end - point.took_ms / 2).toFixed(1);
    mark(line, "x1", x);
    mark(line, "x2", x);
  }
}

// A curve without axes, for a tile.
export class Spark {
  constructor() {
    this.path = svg("path");
    this.element = svg("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" }, this.path);
  }

  show(values) {
    const known = values.filter((value) => value !== null);
    const most = Math.max(...known, 1e-9);
    const d = [];
    let isOpen = false;
    values.forEach((value, at) => {
      if (value === null) return void (isOpen = false);
      const x = values.length > 1 ? at / (values.length - 1) * 100 : 100;
      d.push(`${isOpen ? "L" : "M"}${x.toFixed(1)},${(22 - value / most * 20).toFixed(1)}`);
      isOpen = true;
    });
    mark(this.path, "d", d.join(""));
  }
}
