// Figures as people read them.

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? size : size.toPrecision(3)} ${units[unit]}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${(value / 3600).toFixed(1)} h`;
  return `${(value / 86400).toFixed(1)} d`;
}

export function ago(moment) {
  if (!moment) return "never";
  const gone = Date.now() / 1000 - moment;
  return gone < 2 ? "now" : `${seconds(Math.max(0, Math.floor(gone)))} ago`;
}

export function clock(moment) {
  return new Date(moment * 1000).toLocaleTimeString([], { hour12: false });
}

export function when(moment) {
  return moment ? new Date(moment * 1000).toLocaleString([], { hour12: false }) : "–";
}

export function percent(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
}

export function loss(value) {
  return value === null || value === undefined ? "–" : value.toFixed(3);
}

export function count(value) {
  return value === null || value === undefined ? "–" : value.toLocaleString("en");
}

export const STATE_TONE = {
  queued: "wait",
  running: "good",
  interrupted: "warn",
  finished: "done",
  failed: "bad",
  stopped: "wait",
};

export const OUTCOME_TONE = { ok: "good", late: "warn", refused: "bad", failed: "bad", lost: "bad" };

// What happened, as a sentence for the log.
export function sentence(event) {
  const why = event.reason ? ` (${event.reason.replaceAll("_", " ")})` : "";
  switch (event.kind) {
    case "study_queued":
      return "queued";
    case "study_started":
      return event.from_round > 0
        ? `resumed after round ${event.from_round}, attempt ${event.attempt}`
        : "started";
    case "site_prepared":
      return event.outcome === "ok"
        ? `${event.site} is ready with ${count(event.train_examples)} rows`
        : `${event.site} could not prepare: ${event.outcome}${why}`;
    case "study_forecast":
      return `the study will cost ${bytes(event.bytes_up)} up and ${bytes(event.bytes_down)} down`
        + (event.seconds_round === null ? "" : `, about ${seconds(event.seconds_round)} a round`)
        + event.warnings.map((warning) => `; ${warning}`).join("");
    case "round_started":
      return `round ${event.round} asks ${event.sites.length} hospitals`;
    case "site_result":
      return event.outcome === "ok"
        ? `round ${event.round}: ${event.site} answered, ${bytes(event.bytes_up)} in ${seconds(event.seconds)}`
        : `round ${event.round}: ${event.site} is ${event.outcome}${why}`;
    case "round_finished":
      return event.aggregated
        ? `round ${event.round} ended with ${event.sites_ok} hospitals in ${seconds(event.seconds)}`
        : `round ${event.round} had too few hospitals (${event.sites_ok})`;
    case "study_evaluated":
      return `${event.site}: the final adapter's loss is ${loss(event.evaluation.loss)}`;
    case "lone_evaluated":
      return `${event.site} alone would have reached a loss of ${loss(event.evaluation.loss)}`;
    case "study_interrupted":
      return `interrupted after round ${event.last_round}: ${event.cause}`;
    case "study_ended":
      return `${event.state}: ${event.verdict}`;
    default:
      return event.kind;
  }
}

export function tone(event) {
  if (event.kind === "study_interrupted") return "warn";
  if (event.kind === "study_forecast" && event.warnings.length) return "warn";
  if (event.kind === "study_ended") return STATE_TONE[event.state];
  if (event.kind === "round_finished" && !event.aggregated) return "warn";
  if (event.outcome && event.outcome !== "ok") return OUTCOME_TONE[event.outcome];
  return null;
}
