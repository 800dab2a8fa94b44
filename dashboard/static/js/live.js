// What is known now, kept fresh by the event stream; pages subscribe to it.

import { all, get } from "./api.js";

const LOG_LENGTH = 200;

export const state = { session: null, studies: [], nodes: new Map(), events: [], linked: false };
const listeners = new Set();
let source = null;
let poll = null;

export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell(what, detail) {
  for (const listener of listeners) listener(what, detail);
}

// At most one refresh a second however many events come, and one after the last.
export function throttled(work, every = 1000) {
  let due = false;
  let busy = false;
  async function run() {
    if (busy) {
      due = true;
      return;
    }
    busy = true;
    try {
      await work();
    } catch (error) {
      if (error.status === 401) tell("ended");
      else if (error.status === undefined) due = true; // no answer: once more, after a while
    }
    setTimeout(() => {
      busy = false;
      if (due) {
        due = false;
        run();
      }
    }, every);
  }
  return run;
}

export const refreshStudies = throttled(async () => {
  state.studies = (await get("/api/v1/studies?limit=50")).items;
  tell("studies");
});

export const refreshNodes = throttled(async () => {
  const found = await all("/api/v1/nodes");
  state.nodes = new Map(found.map((node) => [node.site, node]));
  tell("nodes");
}, 5000);

export async function open() {
  close();
  // The stream begins where the newest event that we fetched ends, so none falls between.
  const page = await get(`/api/v1/events?order=newest&limit=${LOG_LENGTH}`);
  state.events = page.items;
  await Promise.all([refreshStudies(), refreshNodes()]);
  connect(state.events.length > 0 ? state.events[0].id : 0);
  poll = setInterval(refreshNodes, 10000);
}

export function close() {
  source?.close();
  clearInterval(poll);
  source = null;
}

function connect(after) {
  source = new EventSource(`/api/v1/events/stream?after=${after}`);
  source.onopen = () => link(true);
  source.onerror = () => {
    link(false);
    if (source !== null && source.readyState === EventSource.CLOSED) {
      // The browser gives up on an answer that is no stream (a session that ended, a restart).
      const last = state.events.length > 0 ? state.events[0].id : 0;
      setTimeout(() => source !== null && connect(last), 3000);
      refreshStudies();
    }
  };
  source.addEventListener("event", (message) => {
    const item = JSON.parse(message.data);
    if (state.events.length > 0 && item.id <= state.events[0].id) return;
    state.events.unshift(item);
    state.events.length = Math.min(state.events.length, LOG_LENGTH);
    tell("event", item);
    refreshStudies();
  });
  source.addEventListener("nodes", (message) => {
    for (const node of JSON.parse(message.data)) state.nodes.set(node.site, node);
    tell("nodes");
  });
}

function link(up) {
  state.linked = up;
  tell("link");
}
