// Parts that several pages show: facts, the hospitals' table, a study's charts, the event log.

import { chart } from "./charts.js";
import { barCell, h, linkCell, pillCell, setText, table } from "./dom.js";
import * as format from "./format.js";

export function section(title, ...children) {
  const id = `s-${title.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
  return h("section", { "aria-labelledby": id }, h("h2", { id }, title), ...children);
}

// Named figures; `update` takes {name: text}.
export function facts() {
  const element = h("dl", { className: "facts" });
  const known = new Map();
  function update(values) {
    for (const [name, text] of Object.entries(values)) {
      let value = known.get(name);
      if (value === undefined) {
        value = h("dd", {});
        known.set(name, value);
        element.append(h("div", {}, h("dt", {}, name), value));
      }
      setText(value, text);
    }
  }
  return { element, update };
}

export function studyCharts() {
  const losses = chart({ title: "Loss", format: format.loss });
  const accuracy = chart({ title: "Held-out accuracy", format: format.percent });
  const traffic = chart({ title: "Payload per round", format: format.bytes, minimum: 0 });
  const element = h("div", { className: "charts" }, losses.element, accuracy.element, traffic.element);
  function update(curves, rest) {
    const more = rest ? [{ label: "all, held-out", values: aligned(curves, rest, "eval_loss"), color: "--series-3", dash: [4, 4] }] : [];
    losses.update(curves.round, [
      { label: "training", values: curves.train_loss, color: "--series-1" },
      { label: "held-out", values: curves.eval_loss, color: "--series-2" },
      ...more,
    ]);
    accuracy.update(curves.round, [
      { label: "accuracy", values: curves.eval_accuracy, color: "--series-2" },
      ...(rest ? [{ label: "all", values: aligned(curves, rest, "eval_accuracy"), color: "--series-3", dash: [4, 4] }] : []),
    ]);
    traffic.update(curves.round, [
      { label: "up", values: curves.bytes_up, color: "--series-1" },
      { label: "down", values: curves.bytes_down, color: "--series-2", dash: [6, 3] },
    ]);
  }
  return { element, update };
}

function aligned(curves, rest, name) {
  const known = new Map(rest.round.map((round, index) => [round, rest[name][index]]));
  return curves.round.map((round) => known.get(round) ?? null);
}

function nodeWord(node) {
  if (node.revoked) return ["revoked", "bad"];
  if (node.up) return ["up", "good"];
  if (node.status === "online") return ["silent", "warn"];
  return node.last_heartbeat_at === null ? ["not seen", "wait"] : ["down", "bad"];
}

// One line for all of a hospital's GPUs; its own page lists them.
function gpuWord(health) {
  const gpus = health?.gpus ?? [];
  if (gpus.length === 0) return "none";
  const sum = (name) => gpus.reduce((total, gpu) => total + gpu[name], 0);
  const most = (name) => Math.max(...gpus.map((gpu) => gpu[name] ?? -1));
  const parts = [`${format.bytes(sum("memory_used_bytes"))} of ${format.bytes(sum("memory_total_bytes"))}`];
  if (most("utilisation") >= 0) parts.push(format.percent(most("utilisation")));
  if (most("temperature_celsius") >= 0) parts.push(`${Math.round(most("temperature_celsius"))} °C`);
  return `${gpus.length > 1 ? `${gpus.length}: ` : ""}${parts.join(", ")}`;
}

export function nodeTable() {
  const filter = h("input", { type: "search", id: "filter", autocomplete: "off" });
  const field = h("p", { className: "field", hidden: true }, h("label", { for: "filter" }, "Find a hospital"), filter);
  const view = table({
    caption: "Hospitals",
    key: (node) => node.site,
    empty: "No hospital is enrolled yet.",
    columns: [
      { head: "Hospital", cell: (node, td) => linkCell(td, `/hospitals/${node.site}`, node.site) },
      { head: "Node", cell: (node, td) => pillCell(td, ...nodeWord(node)) },
      { head: "Last word", number: true, minor: true, cell: (node) => format.ago(Math.max(node.last_report_at ?? 0, node.last_pull_at ?? 0, node.last_heartbeat_at ?? 0)) },
      { head: "Trainer", minor: true, cell: (node) => trainerWord(node) },
      {
        head: "This round",
        cell: (node, td) => {
          const report = node.progress;
          const at = report && report.steps > 0 ? report.step / report.steps : null;
          barCell(td, at, at === null ? "–" : `${report.step}/${report.steps}`, `${node.site}: steps done`);
        },
      },
      { head: "Loss", number: true, minor: true, cell: (node) => format.loss(node.progress?.loss) },
      { head: "Tokens/s", number: true, minor: true, cell: (node) => (node.progress ? format.count(Math.round(node.progress.tokens_per_second)) : "–") },
      { head: "GPU", minor: true, cell: (node) => gpuWord(node.progress?.health) },
      { head: "Disk free", number: true, minor: true, cell: (node) => (node.progress?.health.disk_total_bytes ? format.bytes(node.progress.health.disk_free_bytes) : "–") },
      { head: "Clock", number: true, minor: true, cell: (node) => clockWord(node) },
      { head: "Wire up", number: true, minor: true, cell: (node) => format.bytes(node.wire_bytes_in) },
      { head: "Wire down", number: true, minor: true, cell: (node) => format.bytes(node.wire_bytes_out) },
    ],
  });
  let shown = [];
  function draw() {
    const wanted = filter.value.trim().toLowerCase();
    view.update(shown.filter((node) => node.site.includes(wanted)));
  }
  filter.addEventListener("input", draw);
  function update(nodes) {
    // Those that need somebody come first.
    shown = [...nodes].sort((a, b) => Number(a.up) - Number(b.up) || a.site.localeCompare(b.site));
    field.hidden = shown.length <= 12;
    draw();
  }
  return { element: h("div", {}, field, view.element), update };
}

export function trainerWord(node) {
  const health = node.progress?.health;
  if (!health) return "no report";
  return health.reason ? `${health.state} (${health.reason.replaceAll("_", " ")})` : health.state;
}

export function clockWord(node) {
  const offset = node.clock_offset_seconds;
  if (offset === null) return "–";
  return Math.abs(offset) < 1 ? "right" : `${offset > 0 ? "+" : "−"}${format.seconds(Math.abs(offset))}`;
}

export function siteTable(study) {
  return table({
    caption: "What each hospital did in this study",
    key: (site) => site.site,
    columns: [
      { head: "Hospital", cell: (site, td) => linkCell(td, `/hospitals/${site.site}?study=${study}`, site.site) },
      { head: "Newest answer", cell: (site, td) => pillCell(td, site.reason ? `${site.outcome}: ${site.reason.replaceAll("_", " ")}` : site.outcome, format.OUTCOME_TONE[site.outcome]) },
      { head: "Rounds", number: true, cell: (site) => (site.rounds_missed ? `${site.rounds_ok}, missed ${site.rounds_missed}` : String(site.rounds_ok)) },
      { head: "Loss", number: true, minor: true, cell: (site) => format.loss(site.eval_loss) },
      { head: "Accuracy", number: true, cell: (site) => format.percent(site.final_accuracy ?? site.eval_accuracy) },
      { head: "Data", minor: true, cell: (site) => `${format.count(site.train_examples)} rows, ${site.data_fingerprint?.slice(0, 6) ?? "–"}` },
      { head: "Base model", number: true, minor: true, cell: (site) => format.percent(site.base_accuracy) },
      { head: "Alone", number: true, minor: true, cell: (site) => format.percent(site.lone_accuracy) },
      { head: "Up", number: true, minor: true, cell: (site) => format.bytes(site.bytes_up) },
      { head: "Down", number: true, minor: true, cell: (site) => format.bytes(site.bytes_down) },
      { head: "Saved", number: true, minor: true, cell: (site) => saved(site) },
      { head: "Round", number: true, minor: true, cell: (site) => format.seconds(site.seconds) },
      { head: "Link", number: true, minor: true, cell: (site) => (site.link_bytes_per_second ? `${format.bytes(site.link_bytes_per_second)}/s` : "–") },
    ],
  });
}

function saved(site) {
  const raw = site.raw_bytes_up + site.raw_bytes_down;
  return raw > 0 ? format.percent(Math.max(0, 1 - (site.bytes_up + site.bytes_down) / raw)) : "–";
}

export function eventLog() {
  const list = h("ol", {});
  const element = h("div", { className: "log", tabindex: "0", role: "region", "aria-label": "Events, newest first" }, list);
  const known = new Map();
  function update(items) {
    const wanted = new Set(items.map((item) => item.id));
    for (const [id, row] of known) {
      if (!wanted.has(id)) {
        row.remove();
        known.delete(id);
      }
    }
    let place = list.firstElementChild;
    for (const item of items) {
      let row = known.get(item.id);
      if (row === undefined) {
        row = h(
          "li",
          { "data-tone": format.tone(item.event) },
          h("time", { datetime: new Date(item.event.at * 1000).toISOString(), title: format.when(item.event.at) }, format.clock(item.event.at)),
          " ",
          h("a", { href: `/studies/${item.event.study_id}` }, item.event.study_id),
          ` ${format.sentence(item.event)}`
        );
        known.set(item.id, row);
      }
      if (row === place) place = place.nextElementSibling;
      else list.insertBefore(row, place);
    }
  }
  return { element, update };
}
