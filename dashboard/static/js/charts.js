// Charts: uPlot draws, a sentence and a table say the same to those who do not see it.

import { h } from "./dom.js";

const charts = new Set();

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// series: [{label, values, color: "--series-1", dash}]; format makes a figure of a value.
export function chart({ title, format, minimum }) {
  const canvas = h("div", { className: "plot", role: "img", "aria-label": `${title}: no figures yet.` });
  const legend = h("ul", { className: "legend" });
  const rows = h("div", {});
  const element = h(
    "figure",
    { className: "chart" },
    h("figcaption", {}, title),
    legend,
    canvas,
    h("details", {}, h("summary", {}, "As a table"), rows)
  );
  const self = { element, update, redraw };
  let plot = null;
  let shown = null;

  function update(rounds, series) {
    const kept = series.filter((one) => one.values.some((value) => value !== null));
    const text = JSON.stringify([rounds, kept]);
    if (text === shown?.text) return;
    shown = { text, rounds, series: kept };
    canvas.setAttribute("aria-label", spoken(title, rounds, kept, format));
    legend.replaceChildren(...kept.map((one) => legendItem(one, format)));
    rows.replaceChildren(asTable(title, rounds, kept, format));
    draw();
  }

  function draw() {
    plot?.destroy();
    plot = null;
    if (shown === null || shown.rounds.length === 0 || shown.series.length === 0) {
      canvas.replaceChildren(h("p", { className: "muted" }, "No figures yet."));
      return;
    }
    canvas.replaceChildren();
    const axis = { stroke: color("--muted"), grid: { stroke: color("--line"), width: 1 } };
    const few = shown.rounds.length <= 40;
    plot = new uPlot(
      {
        width: Math.max(220, canvas.clientWidth),
        height: 190,
        legend: { show: false },
        cursor: { y: false },
        scales: {
          x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) },
          y: { range: (_, low, high) => padded(minimum ?? low, high) },
        },
        axes: [
          { ...axis, size: 34, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] },
          { ...axis, size: 64, values: (_, marks) => marks.map((mark) => format(mark)) },
        ],
        series: [
          {},
          ...shown.series.map((one) => ({
            stroke: color(one.color),
            width: 2,
            dash: one.dash,
            spanGaps: true,
            points: { show: few, size: 5 },
          })),
        ],
      },
      [shown.rounds, ...shown.series.map((one) => one.values)],
      canvas
    );
  }

  function redraw() {
    if (element.isConnected) draw();
    else charts.delete(self);
  }

  charts.add(self);
  return self;
}

export function redrawAll() {
  for (const one of [...charts]) one.redraw();
}

let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(redrawAll, 150);
});

function padded(low, high) {
  if (low === null || high === null) return [0, 1];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return [low === 0 ? 0 : low - room, high + room];
}

function newest(values) {
  return values.findLast((value) => value !== null);
}

function spoken(title, rounds, series, format) {
  if (rounds.length === 0 || series.length === 0) return `${title}: no figures yet.`;
  const parts = series.map((one) => {
    const first = one.values.find((value) => value !== null);
    return `${one.label} from ${format(first)} to ${format(newest(one.values))}`;
  });
  return `${title}, rounds ${rounds[0]} to ${rounds.at(-1)}: ${parts.join("; ")}.`;
}

function legendItem(one, format) {
  const swatch = h("span", { className: "swatch", "data-color": one.color.slice(2) });
  if (one.dash) swatch.dataset.dash = "";
  return h("li", {}, swatch, `${one.label} `, h("strong", {}, format(newest(one.values))));
}

// The newest fifty rounds: a table of ten thousand would help nobody.
function asTable(title, rounds, series, format) {
  const from = Math.max(0, rounds.length - 50);
  return h(
    "div",
    { className: "scroll", role: "region", "aria-label": `${title}, as a table`, tabindex: "0" },
    h(
      "table",
      {},
      h("caption", { className: "visually-hidden" }, title),
      h("thead", {}, h("tr", {}, ...["Round", ...series.map((one) => one.label)].map((text) => h("th", { scope: "col" }, text)))),
      h(
        "tbody",
        {},
        ...rounds.slice(from).map((round, index) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, String(round)),
            ...series.map((one) => {
              const value = one.values[from + index];
              return h("td", { className: "number" }, value === null ? "–" : format(value));
            })
          )
        )
      )
    )
  );
}
