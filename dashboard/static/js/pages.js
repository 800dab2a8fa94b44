// The pages: each returns its element, and what to do when something changed.

import { get, post } from "./api.js";
import { barCell, h, linkCell, pillCell, setAttribute, setText, table } from "./dom.js";
import * as format from "./format.js";
import { state, throttled } from "./live.js";
import { clockWord, eventLog, facts, nodeTable, section, siteTable, studyCharts, trainerWord } from "./parts.js";

const ENDED = ["finished", "failed", "stopped"];

function newestStudy() {
  return state.studies.find((study) => study.state === "running") ?? state.studies[0] ?? null;
}

export function overview() {
  const title = h("h1", {}, "Federation");
  const now = studyHead();
  const charts = studyCharts();
  const nodes = nodeTable();
  const log = eventLog();
  const studies = studyTable();
  const certificates = certificateTable();
  const none = h("p", { className: "note" }, "No study has been submitted yet. Start one with ", h("code", {}, "fedward run STUDY.toml"), ".");
  const current = section("Now", now.element, charts.element);
  const element = h("div", {}, title, none, current, section("Hospitals", nodes.element), section("Studies", studies.element), section("Certificates", certificates.element), section("Events", log.element));
  const refreshCertificates = throttled(async () => certificates.update(await get("/api/v1/certificates")), 60000);
  const refreshCurves = throttled(async () => {
    const study = newestStudy();
    if (study !== null) charts.update(await get(`/api/v1/studies/${study.study_id}/curves`));
  }, 2000);

  function changed(what) {
    const study = newestStudy();
    none.hidden = study !== null;
    current.hidden = study === null;
    if (what === "studies" || what === "all") {
      if (study !== null) now.update(study);
      studies.update(state.studies);
      refreshCurves();
    }
    if (what === "nodes" || what === "all" || what === "tick") nodes.update(state.nodes.values());
    if (what === "all" || what === "tick") refreshCertificates();
    if (what === "event" || what === "all") log.update(state.events);
  }
  return { title: "Federation", element, changed };
}

// A study's name, state, bar and figures.
function studyHead() {
  const name = h("a", { className: "study-name" });
  const pill = h("span", { className: "pill" });
  const bar = h("progress", { max: "1", className: "wide", "aria-label": "Rounds done" });
  const figures = facts();
  const element = h("div", { className: "card" }, h("p", { className: "study-line" }, name, " ", pill), bar, figures.element);
  function update(study) {
    setText(name, study.study_id);
    setAttribute(name, "href", `/studies/${study.study_id}`);
    setText(pill, study.stop_requested_at && !ENDED.includes(study.state) ? `${study.state}, stop asked` : study.state);
    setAttribute(pill, "data-tone", format.STATE_TONE[study.state]);
    bar.value = study.rounds_total ? study.rounds_done / study.rounds_total : 0;
    figures.update({
      Rounds: `${study.rounds_done} of ${study.rounds_total}`,
      "Time left": ENDED.includes(study.state) ? "none" : study.remaining_seconds === null ? "not known yet" : `about ${format.seconds(study.remaining_seconds)}`,
      "Held-out loss": format.loss(study.eval_loss),
      "Held-out accuracy": format.percent(study.eval_accuracy),
      "Payload up": format.bytes(study.bytes_up),
      "Payload down": format.bytes(study.bytes_down),
      Interruptions: study.interruptions,
    });
  }
  return { element, update };
}

function studyTable() {
  return table({
    caption: "Studies, newest first",
    key: (study) => study.study_id,
    empty: "None yet.",
    columns: [
      { head: "Study", cell: (study, td) => linkCell(td, `/studies/${study.study_id}`, study.study_id) },
      { head: "State", cell: (study, td) => pillCell(td, study.state, format.STATE_TONE[study.state]) },
      { head: "Rounds", cell: (study, td) => barCell(td, study.rounds_total ? study.rounds_done / study.rounds_total : 0, `${study.rounds_done}/${study.rounds_total}`, "Rounds done") },
      { head: "Loss", number: true, minor: true, cell: (study) => format.loss(study.eval_loss) },
      { head: "Accuracy", number: true, cell: (study) => format.percent(study.eval_accuracy) },
      { head: "Payload", number: true, minor: true, cell: (study) => format.bytes(study.bytes_up + study.bytes_down) },
      { head: "Submitted", minor: true, cell: (study) => format.when(study.submitted_at) },
    ],
  });
}

function certificateTable() {
  const tone = (days) => (days === null ? "good" : days === 30 ? "done" : days === 7 ? "warn" : "bad");
  return table({
    caption: "Certificates, the first to end in front",
    key: (certificate) => certificate.name,
    empty: "None is known.",
    columns: [
      { head: "Certificate", cell: (certificate) => certificate.name },
      { head: "Until", cell: (certificate, td) => pillCell(td, format.when(certificate.not_after), tone(certificate.warning)) },
      { head: "Renewed by", minor: true, cell: (certificate) => certificate.renew.replaceAll("`", "") },
    ],
  });
}

export function studyPage(id) {
  const head = studyHead();
  const charts = studyCharts();
  const verdict = h("p", { className: "note", hidden: true });
  const sites = siteTable(id);
  const rounds = roundTable();
  const older = h("button", { type: "button", onclick: () => more() }, "Earlier rounds");
  const log = eventLog();
  const settings = h("pre", { tabindex: "0", "aria-label": "Settings" });
  const stop = stopButton(id);
  const element = h(
    "div",
    {},
    h("h1", {}, `Study ${id}`),
    verdict,
    head.element,
    stop.element,
    section("Curves", charts.element),
    section("Hospitals in this study", sites.element),
    section("Rounds", rounds.element, older),
    section("Events", log.element),
    section("Settings", h("details", {}, h("summary", {}, "Show all settings"), settings))
  );
  const kept = new Map();
  const refresh = throttled(async () => {
    const study = await get(`/api/v1/studies/${id}`);
    head.update(study);
    stop.update(study);
    verdict.hidden = !study.verdict;
    setText(verdict, study.verdict);
    sites.update(study.sites);
    for (const round of study.rounds) kept.set(round.round, round);
    show();
    setText(settings, JSON.stringify(study.settings, null, 2));
    charts.update(await get(`/api/v1/studies/${id}/curves`));
    log.update((await get(`/api/v1/events?study=${id}&order=newest&limit=100`)).items);
  }, 1500);

  function show() {
    const found = [...kept.values()].sort((a, b) => b.round - a.round);
    rounds.update(found);
    older.hidden = found.length === 0 || found.at(-1).round <= 1;
  }

  async function more() {
    const first = Math.min(...kept.keys());
    const page = await get(`/api/v1/studies/${id}/rounds?sites=false&after=${Math.max(-1, first - 51)}&limit=50`);
    for (const round of page.items) if (!kept.has(round.round)) kept.set(round.round, round);
    show();
  }

  function changed(what, item) {
    if (what === "all" || what === "studies" || (what === "event" && item.event.study_id === id)) refresh();
  }
  return { title: id, element, changed };
}

function roundTable() {
  return table({
    caption: "Rounds, newest first",
    key: (round) => round.round,
    empty: "No round has started yet.",
    columns: [
      { head: "Round", cell: (round) => String(round.round) },
      {
        head: "Result",
        cell: (round, td) => {
          if (round.aggregated === null) pillCell(td, "running", "wait");
          else pillCell(td, round.aggregated ? "aggregated" : "too few", round.aggregated ? "good" : "warn");
        },
      },
      { head: "Hospitals", number: true, cell: (round) => `${round.sites_ok ?? 0} of ${round.sites_asked}` },
      { head: "Took", number: true, minor: true, cell: (round) => format.seconds(round.seconds) },
      { head: "Training", number: true, minor: true, cell: (round) => format.seconds(round.seconds_training) },
      { head: "Train loss", number: true, minor: true, cell: (round) => format.loss(round.train_loss) },
      { head: "Held-out loss", number: true, minor: true, cell: (round) => format.loss(round.eval_loss) },
      { head: "Accuracy", number: true, cell: (round) => format.percent(round.eval_accuracy) },
      { head: "Up", number: true, minor: true, cell: (round) => format.bytes(round.bytes_up) },
      { head: "Down", number: true, minor: true, cell: (round) => format.bytes(round.bytes_down) },
    ],
  });
}

function stopButton(id) {
  const problem = h("p", { className: "note", role: "alert", hidden: true });
  const dialog = h(
    "dialog",
    { "aria-labelledby": "stop-title" },
    h("h2", { id: "stop-title" }, "Stop this study?"),
    h("p", {}, `${id} ends after what it is doing now. Its last checkpoint stays; it cannot be started again.`),
    h(
      "div",
      { className: "row" },
      h("button", { type: "button", className: "danger", onclick: () => send() }, "Stop the study"),
      h("button", { type: "button", onclick: () => dialog.close() }, "Let it run")
    )
  );
  const button = h("button", { type: "button", className: "danger", onclick: () => dialog.showModal() }, "Stop study");
  const element = h("div", { className: "row", hidden: true }, button, problem, dialog);
  async function send() {
    dialog.close();
    try {
      await post(`/api/v1/studies/${id}/stop`);
      button.disabled = true;
      setText(button, "Stop asked");
    } catch (error) {
      problem.hidden = false;
      setText(problem, error.message);
    }
  }
  function update(study) {
    element.hidden = state.session.role !== "coordinator" || ENDED.includes(study.state);
    if (study.stop_requested_at) {
      button.disabled = true;
      setText(button, "Stop asked");
    }
  }
  return { element, update };
}

export function hospitalPage(site, study) {
  const figures = facts();
  const charts = studyCharts();
  const gpus = table({
    caption: "GPUs",
    key: (gpu) => gpu.index,
    empty: "This hospital reports no GPU.",
    columns: [
      { head: "GPU", cell: (gpu) => String(gpu.index) },
      { head: "Memory", cell: (gpu, td) => barCell(td, gpu.memory_total_bytes ? gpu.memory_used_bytes / gpu.memory_total_bytes : 0, `${format.bytes(gpu.memory_used_bytes)} of ${format.bytes(gpu.memory_total_bytes)}`, "GPU memory in use") },
      { head: "In use", number: true, cell: (gpu) => format.percent(gpu.utilisation) },
      { head: "Temperature", number: true, cell: (gpu) => (gpu.temperature_celsius === null || gpu.temperature_celsius === undefined ? "–" : `${Math.round(gpu.temperature_celsius)} °C`) },
    ],
  });
  const log = eventLog();
  const against = h("p", { className: "muted" });
  const element = h("div", {}, h("h1", {}, `Hospital ${site}`), section("Health", h("div", { className: "card" }, figures.element)), section("GPUs", gpus.element), section("Against the rest", against, charts.element), section("Events", log.element));

  function health() {
    const node = state.nodes.get(site);
    if (node === undefined) return;
    const own = node.progress?.health;
    figures.update({
      Node: node.revoked ? "revoked" : node.up ? "up" : node.status === "online" ? "online, but silent" : node.status,
      Trainer: trainerWord(node),
      "Last report": format.ago(node.last_report_at),
      "Last heartbeat": format.ago(node.last_heartbeat_at),
      "Last pull": format.ago(node.last_pull_at),
      Clock: clockWord(node),
      "This round": node.progress?.steps ? `${node.progress.step} of ${node.progress.steps} steps` : "–",
      "Tokens per second": node.progress ? format.count(Math.round(node.progress.tokens_per_second)) : "–",
      Processor: format.percent(own?.cpu),
      Memory: own ? `${format.bytes(own.memory_used_bytes)} of ${format.bytes(own.memory_total_bytes)}` : "–",
      "Disk free": own ? `${format.bytes(own.disk_free_bytes)} of ${format.bytes(own.disk_total_bytes)}` : "–",
      "Base model loads": own ? own.base_loads : "–",
      "Trainer restarts": node.trainer_restarts,
      "On the wire": `${format.bytes(node.wire_bytes_in)} up, ${format.bytes(node.wire_bytes_out)} down`,
      "Refused requests": node.refused_requests,
      Software: own?.software || "–",
    });
    gpus.update(own?.gpus ?? []);
  }

  const refresh = throttled(async () => {
    const chosen = study ?? newestStudy()?.study_id;
    if (chosen !== undefined) {
      setText(against, `Study ${chosen}; the dashed line is all hospitals together.`);
      const [own, rest] = await Promise.all([get(`/api/v1/studies/${chosen}/curves?site=${site}`), get(`/api/v1/studies/${chosen}/curves`)]);
      charts.update(own, rest);
    }
    log.update((await get(`/api/v1/events?site=${site}&order=newest&limit=100`)).items);
  }, 2000);

  function changed(what, item) {
    if (what !== "event") health();
    if (what === "all" || what === "studies" || (what === "event" && item.event.site === site)) refresh();
  }
  return { title: site, element, changed };
}
