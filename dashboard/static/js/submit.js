// A coordinator starts a study: the settings that matter most, or a copy of an earlier study's.

import { get, post } from "./api.js";
import { h, setText } from "./dom.js";
import { state } from "./live.js";

const FIELDS = [
  { key: "name", label: "Name", hint: "lower-case letters, digits and dashes", required: true, pattern: "[a-z0-9]([a-z0-9\\-]{0,61}[a-z0-9])?" },
  { key: "model.base", label: "Base model", hint: "a directory at every hospital, or a hub id", required: true },
  { key: "model.quantization", label: "Quantization", options: ["nf4", "fp4", "int8", "none"] },
  { key: "rounds.count", label: "Rounds", type: "number", value: 10, min: 1 },
  { key: "rounds.minimum_sites", label: "Hospitals a round needs", type: "number", value: 2, min: 1 },
  { key: "rounds.deadline_seconds", label: "Deadline of a round, seconds", type: "number", value: 3600, min: 1 },
  { key: "training.steps", label: "Steps a round", type: "number", value: 10, min: 1 },
  { key: "training.batch_size", label: "Batch size", type: "number", value: 16, min: 1 },
  { key: "training.learning_rate", label: "Learning rate", type: "number", value: 0.0002, min: 0, step: "any" },
  { key: "adapter.rank", label: "LoRA rank", type: "number", value: 16, min: 1 },
  { key: "prompt.template", label: "Prompt", options: ["alpaca", "chat", "plain"] },
];

function input(field) {
  const id = `f-${field.key.replaceAll(".", "-")}`;
  const hint = field.hint ? h("small", { id: `${id}-hint`, className: "muted" }, field.hint) : null;
  const common = { id, name: field.key, "aria-describedby": hint ? `${id}-hint` : undefined, required: field.required };
  const control = field.options
    ? h("select", common, ...field.options.map((option) => h("option", { value: option }, option)))
    : h("input", { ...common, type: field.type ?? "text", value: field.value === undefined ? undefined : String(field.value), min: field.min === undefined ? undefined : String(field.min), step: field.step, pattern: field.pattern, autocomplete: "off" });
  return { control, element: h("p", { className: "field" }, h("label", { for: id }, field.label), control, hint) };
}

function read(tree, key) {
  return key.split(".").reduce((inner, part) => inner?.[part], tree);
}

function write(tree, key, value) {
  const parts = key.split(".");
  const last = parts.pop();
  let inner = tree;
  for (const part of parts) inner = inner[part] ??= {};
  inner[last] = value;
}

export function newStudyPage(go) {
  if (state.session.role !== "coordinator") {
    const element = h("div", {}, h("h1", {}, "New study"), h("p", { className: "note" }, "Starting a study needs a coordinator's token; you are logged in as an operator."));
    return { title: "New study", element, changed() {} };
  }
  let base = {};
  const inputs = FIELDS.map((field) => ({ field, ...input(field) }));
  const sites = h("div", { className: "checks" });
  const problem = h("p", { className: "note", role: "alert", hidden: true });
  const copy = h("select", { id: "copy" }, h("option", { value: "" }, "nothing: the defaults"));
  copy.addEventListener("change", async () => {
    base = copy.value ? (await get(`/api/v1/studies/${copy.value}`)).settings : {};
    for (const { field, control } of inputs) {
      const value = read(base, field.key);
      if (value !== undefined) control.value = value;
    }
    for (const box of sites.querySelectorAll("input")) box.checked = (base.sites ?? []).includes(box.value);
  });
  const form = h(
    "form",
    { className: "card form" },
    h("p", { className: "field" }, h("label", { for: "copy" }, "Begin with the settings of"), copy),
    ...inputs.map((one) => one.element),
    h("fieldset", {}, h("legend", {}, "Hospitals (none chosen: all that are enrolled)"), sites),
    problem,
    h("div", { className: "row" }, h("button", { type: "submit", className: "primary" }, "Start the study"))
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.hidden = true;
    const settings = structuredClone(base);
    for (const { field, control } of inputs) write(settings, field.key, field.type === "number" ? Number(control.value) : control.value.trim());
    settings.sites = [...sites.querySelectorAll("input:checked")].map((box) => box.value);
    try {
      const made = await post("/api/v1/studies", { settings });
      go(`/studies/${made.study_id}`);
    } catch (error) {
      problem.hidden = false;
      const more = error.errors?.length > 1 ? ` (and ${error.errors.length - 1} more)` : "";
      setText(problem, `Not started: ${error.message.replace("body.settings.", "")}${more}`);
    }
  });
  const element = h("div", {}, h("h1", {}, "New study"), form);

  function changed(what) {
    if (what !== "all" && what !== "nodes" && what !== "studies") return;
    const known = new Set([...sites.querySelectorAll("input")].map((box) => box.value));
    for (const node of state.nodes.values()) {
      if (node.enrolled && !node.revoked && !known.has(node.site)) {
        const id = `site-${node.site}`;
        sites.append(h("span", {}, h("input", { type: "checkbox", id, value: node.site }), h("label", { for: id }, node.site)));
      }
    }
    const listed = new Set([...copy.options].map((option) => option.value));
    for (const study of state.studies) if (!listed.has(study.study_id)) copy.append(h("option", { value: study.study_id }, study.study_id));
  }
  return { title: "New study", element, changed };
}
