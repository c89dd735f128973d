// The panels: each shows its part of a snapshot.

import { KINDS, Spark } from "./charts.js";
import { Bar, Rows, Table, button, byId, element, mark, say, searched } from "./dom.js";
import { bytes, clock, count, milliseconds, number, percent, plural, span } from "./format.js";

const LEVELS = { bad: "Broken", warn: "Attention", info: "Good to know" };

export function concerns(snapshot) {
  const host = byId("concerns");
  const all = snapshot.concerns;
  const key = JSON.stringify(all);
  if (host.dataset.key === key) return;
  host.dataset.key = key;
  const shown = all.slice(0, 6).map(({ level, what, hint }) => element("div", `concern ${level}`,
    element("span", "level", LEVELS[level]), element("b", "", what), element("span", "hint", hint)));
  if (all.length > 6) shown.push(element("p", "note", `and ${all.length - 6} more`));
  if (!all.length) shown.push(element("div", "concern good", element("span", "level", "All well"), element("b", "", "nothing needs attention")));
  host.replaceChildren(...shown);
}

const last = (points, of) => points.findLast((point) => of(point) != null && point.took_ms > 1500);

const TILES = [
  { name: "first_token", label: "First token", of: (p) => p.first_token_ms?.[0] ?? null, band: (p) => p.first_token_ms },
  { name: "between_tokens", label: "Between tokens", of: (p) => p.between_tokens_ms?.[0] ?? null, band: (p) => p.between_tokens_ms },
  {
    name: "throughput", label: "Tokens a second", of: (p) => p.generated_tokens * 1000 / Math.max(1, p.took_ms),
    value: (_, point) => number(point ? point.generated_tokens * 1000 / Math.max(1, point.took_ms) : 0),
    more: (_, point) => (point ? `${number(point.computed_tokens * 1000 / Math.max(1, point.took_ms))} with prompts` : ""),
  },
  { name: "running", label: "Running", of: (p) => p.running, value: (s) => count(s.load.running), more: (s) => `${plural(s.num_requests, "request")} open` },
  {
    name: "waiting", label: "Waiting", of: (p) => p.waiting, value: (s) => count(s.load.waiting),
    more: (s) => (s.queue.length ? `the first for ${span(Math.max(...s.queue.map((it) => it.oldest_ms)))}` : "nobody"),
  },
  {
    name: "kv", label: "KV cache held", of: (p) => p.kv_used, value: (s) => (s.load.blocks ? percent(s.load.used_blocks / s.load.blocks) : "–"),
    more: (s) => `${count(s.load.used_blocks)} of ${count(s.load.blocks)} blocks`,
  },
  {
    name: "prefix", label: "Prefix hits", of: (p) => (p.prefix_tokens ? p.prefix_hits / p.prefix_tokens : null),
    value: (_, __, points) => {
      const sum = (field) => points.reduce((all, point) => all + point[field], 0);
      return sum("prefix_tokens") ? percent(sum("prefix_hits") / sum("prefix_tokens")) : "–";
    },
    more: () => "of prompt tokens, this hour",
  },
  {
    name: "failed", label: "Failed or refused", of: (p) => p.failed + p.refused,
    value: (_, __, points) => count(points.reduce((all, point) => all + point.failed + point.refused, 0)),
    more: (_, __, points) => `of ${count(points.reduce((all, p) => all + p.failed + p.refused + p.ended, 0))}, this hour`,
  },
];

export class Tiles {
  constructor() {
    this.tiles = TILES.map((tile) => {
      const [value, more, spark] = [element("b", "value"), element("span", "more"), new Spark()];
      const host = element("div", "tile", element("span", "label", tile.label), value, more, spark.element);
      host.dataset.tile = tile.name;
      byId("tiles").append(host);
      return { tile, value, more, spark, host };
    });
  }

  show(snapshot, points) {
    for (const { tile, value, more, spark, host } of this.tiles) {
      const point = last(points, tile.of);
      if (tile.band) {
        const band = point && tile.band(point);
        say(value, band ? milliseconds(band[0]) : "–");
        say(more, band ? `p90 ${milliseconds(band[1])}, p99 ${milliseconds(band[2])}` : "no answer yet");
      } else {
        say(value, tile.value(snapshot, point, points));
        say(more, tile.more(snapshot, point, points));
      }
      spark.show(points.slice(-60).map(tile.of));
      host.classList.toggle("alarm", tile.name === "failed" && value.textContent !== "0");
    }
  }
}

// A pipeline is a row: its stages side by side, as wide as they have layers.
export class Pipelines {
  constructor() {
    const build = () => new PipelineRow();
    this.rows = new Rows(byId("pipelines-list"), { height: 148, max: 600, build, empty: () => this.none });
  }

  show(snapshot) {
    this.none = snapshot.waiting_for || "There is no pipeline.";
    const serving = snapshot.pipelines.filter((it) => it.state === "serving").length;
    const wanted = snapshot.scaling ? `, ${snapshot.scaling.wanted} wanted` : "";
    say(byId("pipelines-note"), `${serving} of ${plural(snapshot.pipelines.length, "pipeline")} serving${wanted}`);
    this.rows.show(snapshot.pipelines);
  }
}

class PipelineRow {
  constructor() {
    this.name = element("b");
    this.state = element("span", "pill");
    this.load = element("span", "line");
    this.kv = new Bar("KV cache", "kv");
    this.step = element("span", "line");
    this.token = element("span", "line");
    const head = element("div", "pipeline-head", element("div", "line", this.name, this.state), this.load, this.kv.element, this.step, this.token);
    this.cards = element("div", "stages");
    this.stages = [];
    this.element = element("div", "pipeline", head, this.cards);
  }

  show(pipeline) {
    const { load, time } = pipeline;
    mark(this.element, "data-pipeline", pipeline.pipeline);
    say(this.name, `Pipeline ${pipeline.pipeline}`);
    say(this.state, pipeline.state);
    this.state.className = `pill ${pipeline.state}`;
    say(this.load, `${load.running} running, ${load.blocks ? percent(load.used_blocks / load.blocks) : "no"} KV held`);
    this.kv.show([load.blocks ? load.used_blocks / load.blocks : 0], `${load.used_blocks} of ${load.blocks} blocks`);
    say(this.step, time ? `step ${milliseconds(time.step_ms)}, ${number(time.tokens)} tokens` : "no step yet");
    const { measured_token_ms: measured, predicted_token_ms: predicted } = pipeline;
    say(this.token, measured ? `token ${milliseconds(measured)}, predicted ${milliseconds(predicted)}` : `token predicted ${milliseconds(predicted)}`);
    while (this.stages.length < pipeline.stages.length) {
      const card = new StageCard();
      this.stages.push(card);
      this.cards.append(card.element);
    }
    while (this.stages.length > pipeline.stages.length) this.stages.pop().element.remove();
    pipeline.stages.forEach((stage, at) => this.stages[at].show(stage, at, pipeline));
  }
}

class StageCard {
  constructor() {
    this.title = element("b");
    this.busy = element("span", "busy");
    this.node = element("span", "line mono");
    this.adapter = element("span", "line dim");
    this.memory = new Bar("Memory", "memory");
    this.memoryText = element("span", "line dim");
    this.time = new Bar("Of a step", "compute", "wait", "network");
    this.times = ["compute", "wait", "network"].map(() => element("b"));
    const named = ["compute", "wait", "network"].map((kind, at) => element("span", `key-${kind}`,
      element("i"), element("span", "unseen", ["computing ", "waiting ", "network "][at]), this.times[at]));
    this.timeText = element("span", "line parts", ...named);
    this.element = element("div", "stage", element("div", "line", this.title, this.busy), this.node, this.adapter,
      this.memory.element, this.memoryText, this.time.element, this.timeText);
  }

  show(stage, at, pipeline) {
    const [first, end] = stage.layers;
    const grow = String(Math.max(1, end - first));
    if (this.element.style.flexGrow !== grow) this.element.style.flexGrow = grow;
    mark(this.element, "data-stage", at);
    mark(this.element, "data-node", stage.node);
    say(this.title, `${at} · layers ${first}–${end - 1}`);
    say(this.node, `${stage.hostname} ${stage.node}`);
    say(this.adapter, stage.adapter);
    this.adapter.title = stage.adapter;
    const isLoading = stage.state === "loading";
    this.element.classList.toggle("loading", isLoading);
    const whole = isLoading ? stage.of_bytes : stage.adapter_bytes;
    const memory = `${bytes(stage.memory_bytes)} of ${bytes(whole)}${isLoading ? " loaded" : ""}`;
    this.memory.show([whole ? stage.memory_bytes / whole : 0], memory);
    say(this.memoryText, memory);
    const time = pipeline.time?.stages[at];
    const { coordinator } = pipeline.time ?? {};
    const longest = pipeline.time && Math.max(...pipeline.time.stages.map((it) => it.compute_ms + it.wait_ms + it.network_ms));
    say(this.busy, time ? `${percent(time.busy)} busy` : stage.state);
    this.busy.classList.toggle("hot", Boolean(time) && time.busy > 0.9);
    if (!time) {
      this.time.show([0, 0, 0], "no step yet");
      return this.times.forEach((it) => say(it, "–"));
    }
    const parts = [time.compute_ms, time.wait_ms, time.network_ms];
    const [compute, wait, network] = parts.map(milliseconds);
    this.time.show(parts.map((it) => it / Math.max(longest, 1e-9)), `computing ${compute}, waiting ${wait}, network ${network}`);
    this.times.forEach((it, part) => say(it, milliseconds(parts[part])));
    this.element.title = at === 0 && coordinator
      ? `the coordinator's own part: waiting ${milliseconds(coordinator.wait_ms)}, network ${milliseconds(coordinator.network_ms)}` : "";
  }
}

function pill(of, textOf = of) {
  return () => {
    const host = element("span", "pill");
    const cell = element("div", "", host);
    return {
      element: cell,
      show(item) {
        const state = of(item);
        say(host, textOf(item).replace("_", " "));
        if (host.className !== `pill ${state}`) host.className = `pill ${state}`;
      },
    };
  };
}

function bar(kinds, label, of) {
  return () => {
    const shown = new Bar(label, ...kinds);
    const text = element("span", "bar-text");
    const cell = element("div", "bar-cell", shown.element, text);
    return {
      element: cell,
      show(item) {
        const [shares, said] = of(item);
        shown.show(shares, said);
        say(text, said);
      },
    };
  };
}

export class Nodes {
  constructor(act) {
    const actions = () => {
      const cell = element("div", "actions");
      let node = null;
      const told = (name) => button(name[0].toUpperCase() + name.slice(1), "", () => act(name, node));
      const [cordon, drain, uncordon] = ["cordon", "drain", "uncordon"].map(told);
      cell.append(cordon, drain, uncordon);
      return {
        element: cell,
        show(item) {
          node = item;
          const isActive = item.duty === "active";
          const isLost = item.state === "lost";
          cordon.hidden = !isActive || isLost;
          drain.hidden = item.duty === "draining" || isLost;
          uncordon.hidden = isActive;
          mark(cordon, "aria-label", `Cordon ${item.hostname} ${item.node}`);
          mark(drain, "aria-label", `Drain ${item.hostname} ${item.node}`);
          mark(uncordon, "aria-label", `Uncordon ${item.hostname} ${item.node}`);
        },
      };
    };
    // Of a node that is gone, too, an operator has said what it is there for.
    const said = (n) => (n.duty === "active" || n.duty === n.state ? n.state : `${n.state}, ${n.duty}`);
    const columns = [
      { label: "State", width: "124px", of: said, cell: pill((n) => n.state, said) },
      { label: "Host", width: "minmax(90px, 1fr)", of: (n) => n.hostname, text: (n) => n.hostname || "–", title: true },
      { label: "Node", width: "150px", of: (n) => n.node, text: (n) => n.node },
      { label: "Pool", width: "minmax(60px, .6fr)", of: (n) => n.pool, text: (n) => [n.pool, ...n.labels].filter(Boolean).join(" ") || "–", title: true },
      { label: "Adapters", width: "minmax(120px, 1.6fr)", of: (n) => n.adapters.join(), text: (n) => n.adapters.join(", ") || n.cause || "–", title: true },
      { label: "Holds", width: "minmax(90px, .8fr)", of: (n) => n.holds[0]?.[0] ?? -1, text: (n) => n.holds.map(([p, s]) => `${p}.${s}`).join(" ") || "–", title: true },
      {
        label: "Memory", width: "minmax(150px, 1fr)", of: (n) => n.used_bytes / Math.max(1, n.memory_bytes),
        cell: bar(["memory"], "Memory", (n) => (n.loading
          ? [[n.loading[0] / Math.max(1, n.loading[1])], `${bytes(n.loading[0])} of ${bytes(n.loading[1])} loaded`]
          : [[n.used_bytes / Math.max(1, n.memory_bytes)], n.memory_bytes ? `${bytes(n.used_bytes)} of ${bytes(n.memory_bytes)}` : "–"])),
      },
      { label: "Round trip", width: "92px", isNumber: true, of: (n) => n.rtt_us ?? Infinity, text: (n) => (n.rtt_us == null ? "–" : milliseconds(n.rtt_us / 1000)) },
      { label: "", width: "150px", cell: actions },
    ];
    const empty = () => "No node has joined.";
    this.table = new Table(byId("nodes-list"), "Nodes", columns, { height: 34, max: 442, empty });
    const text = (n) => [n.hostname, n.node, n.pool, said(n), n.adapters.join(" "), n.labels.join(" ")].join(" ");
    searched(byId("nodes-filter"), this.table, text);
  }

  show(snapshot) {
    const states = new Map();
    for (const { state } of snapshot.nodes) states.set(state, (states.get(state) ?? 0) + 1);
    say(byId("nodes-note"), [...states].map(([state, num]) => `${num} ${state}`).join(", "));
    this.table.show(snapshot.nodes);
  }
}

export class Queue {
  constructor() {
    const columns = [
      { label: "Priority", width: "96px", of: (g) => g.priority, cell: pill((g) => g.priority) },
      { label: "Tenant", width: "minmax(70px, 1fr)", of: (g) => g.tenant, text: (g) => g.tenant, title: true },
      { label: "Waiting", width: "72px", isNumber: true, of: (g) => g.num, text: (g) => count(g.num) },
      { label: "Lifted", width: "64px", isNumber: true, of: (g) => g.lifted, text: (g) => count(g.lifted) },
      { label: "Tokens", width: "72px", isNumber: true, of: (g) => g.tokens, text: (g) => count(g.tokens) },
      { label: "Oldest", width: "84px", isNumber: true, of: (g) => g.oldest_ms, text: (g) => span(g.oldest_ms) },
      { label: "Waits for", width: "minmax(120px, 2fr)", text: (g) => g.why, title: true },
    ];
    const empty = () => "Nobody waits.";
    this.table = new Table(byId("queue-list"), "Queue", columns, { height: 34, max: 272, empty });
  }

  show(snapshot) {
    const more = snapshot.queue_more ? `, ${snapshot.queue_more} more tenants not shown` : "";
    say(byId("queue-note"), `${count(snapshot.load.waiting)} waiting${more}`);
    this.table.show(snapshot.queue);
  }
}

export class Jobs {
  constructor(act) {
    const actions = () => {
      let job = null;
      const cancel = button("Cancel", "", () => act("job", job));
      return {
        element: element("div", "actions", cancel),
        show(item) {
          job = item;
          cancel.hidden = !["validating", "in_progress"].includes(item.state);
          mark(cancel, "aria-label", `Cancel ${item.id}`);
        },
      };
    };
    const progress = (job) => {
      const all = Math.max(1, job.lines);
      const said = job.error || `${count(job.completed + job.failed)} of ${count(job.lines)}${job.failed ? `, ${count(job.failed)} failed` : ""}`;
      return [[job.completed / all, job.failed / all], said];
    };
    const left = (job) => (job.left_s < 0 ? "late" : span(job.left_s * 1000));
    const isOpen = (job) => ["validating", "in_progress", "finalizing", "cancelling"].includes(job.state);
    const columns = [
      { label: "State", width: "108px", of: (j) => j.state, cell: pill((j) => j.state) },
      { label: "Job", width: "minmax(80px, 1fr)", of: (j) => j.id, text: (j) => j.id, title: true },
      { label: "Tenant", width: "minmax(60px, .7fr)", of: (j) => j.tenant, text: (j) => j.tenant, title: true },
      { label: "Lines", width: "minmax(130px, 1.4fr)", of: (j) => j.completed / Math.max(1, j.lines), cell: bar(["done", "failed"], "Lines", progress) },
      { label: "Age", width: "86px", isNumber: true, of: (j) => j.age_s, text: (j) => span(j.age_s * 1000) },
      { label: "Time left", width: "86px", isNumber: true, of: (j) => j.left_s, text: (j) => (isOpen(j) ? left(j) : "–") },
      { label: "", width: "66px", cell: actions },
    ];
    const empty = () => "There are no batch jobs.";
    this.table = new Table(byId("jobs-list"), "Batch jobs", columns, { height: 34, max: 272, empty });
    this.isOpen = isOpen;
  }

  show(snapshot) {
    const open = snapshot.jobs.filter(this.isOpen);
    const waiting = open.reduce((all, job) => all + job.lines - job.completed - job.failed, 0);
    say(byId("jobs-note"), `${open.length} open, ${plural(waiting, "line")} to answer`);
    this.table.show(snapshot.jobs);
  }
}

export class Requests {
  constructor(open) {
    const columns = [
      { label: "State", width: "96px", of: (r) => r.state, cell: pill((r) => r.state) },
      { label: "Request", width: "156px", of: (r) => r.id, text: (r) => r.id },
      { label: "Tenant", width: "minmax(80px, 1fr)", of: (r) => r.tenant, text: (r) => r.tenant, title: true },
      { label: "Priority", width: "96px", of: (r) => r.priority, text: (r) => r.priority },
      { label: "Age", width: "96px", isNumber: true, of: (r) => r.age_ms, text: (r) => span(r.age_ms) },
      { label: "Pipeline", width: "76px", isNumber: true, of: (r) => r.pipelines[0] ?? -1, text: (r) => r.pipelines.join(" ") || "–" },
      { label: "Prompt", width: "76px", isNumber: true, of: (r) => r.prompt_tokens, text: (r) => (r.prompt_tokens ? count(r.prompt_tokens) : "–") },
      { label: "Answer", width: "76px", isNumber: true, of: (r) => r.generated_tokens, text: (r) => (r.prompt_tokens ? count(r.generated_tokens) : "–") },
      { label: "Last decision", width: "minmax(140px, 1.4fr)", of: (r) => r.last, text: (r) => `${r.last} ${span(r.last_ms)} ago` },
      { label: "Setbacks", width: "86px", isNumber: true, of: (r) => r.setbacks, text: (r) => (r.setbacks ? count(r.setbacks) : "–") },
    ];
    const empty = () => "No request is open.";
    this.table = new Table(byId("requests-list"), "Requests", columns, { height: 30, max: 390, empty, open });
    searched(byId("requests-filter"), this.table, (r) => [r.id, r.tenant, r.priority, r.state, r.last].join(" "));
  }

  show(snapshot) {
    const shown = snapshot.requests.length;
    const part = shown < snapshot.num_requests ? `, ${count(shown)} of them shown` : "";
    say(byId("requests-note"), `${count(snapshot.num_requests)} open${part}; choose one for its log`);
    this.table.show(snapshot.requests);
  }
}

export class Events {
  constructor() {
    const tone = () => {
      const host = element("span", "pill");
      return {
        element: element("div", "", host),
        show(event) {
          const { tone: kind, says } = KINDS[event.kind] ?? KINDS.scaled;
          say(host, says);
          if (host.className !== `pill ${kind}`) host.className = `pill ${kind}`;
        },
      };
    };
    const columns = [
      { label: "Time", width: "92px", text: (e) => clock(e.at) },
      { label: "What", width: "200px", cell: tone },
      { label: "Whose", width: "160px", text: (e) => e.node || (e.pipeline == null ? "–" : `pipeline ${e.pipeline}`) },
      { label: "", width: "minmax(160px, 1fr)", text: (e) => e.text, title: true },
    ];
    const empty = () => "Nothing has happened yet.";
    this.table = new Table(byId("events-list"), "Events", columns, { height: 30, max: 300, empty, open: () => {} });
  }

  show(events) {
    say(byId("events-note"), `${plural(events.length, "event")}, newest first`);
    this.newestFirst = events.toReversed();
    this.table.show(this.newestFirst);
  }

  // The row of an event of the time line.
  point(event) {
    const at = this.newestFirst.findIndex((it) => it.number === event.number);
    if (at < 0) return;
    this.table.rows.view.scrollTop = at * this.table.rows.height;
    this.table.rows.choose(at, false);
  }
}
