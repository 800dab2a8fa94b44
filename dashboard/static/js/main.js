// The entry: log in, choose the page by the address, keep it fresh.

import { logIn, logOut, readSession } from "./api.js";
import { redrawAll } from "./charts.js";
import { announce, h, setText } from "./dom.js";
import { sentence } from "./format.js";
import { close, open, state, subscribe } from "./live.js";
import { hospitalPage, overview, studyPage } from "./pages.js";
import { newStudyPage } from "./submit.js";

const main = document.getElementById("main");
let page = null;

async function start() {
  try {
    state.session = await readSession();
  } catch (error) {
    if (error.status === 401) return showLogIn("");
    return later(error, start);
  }
  await enter();
}

async function enter() {
  document.getElementById("pages").hidden = false;
  document.getElementById("log-out").hidden = false;
  document.getElementById("new-study").hidden = state.session.role !== "coordinator";
  try {
    await open();
  } catch (error) {
    if (error.status === 401) return showLogIn(error.message);
    return later(error, enter);
  }
  show();
}

// No answer is no reason to ask for the token again: say so, and try again.
function later(error, again) {
  main.replaceChildren(h("p", { className: "note", role: "status" }, `The control plane does not answer (${error.message}); trying again.`));
  setTimeout(again, 2000);
}

function showLogIn(trouble) {
  close();
  page = null;
  state.session = null;
  document.getElementById("pages").hidden = true;
  document.getElementById("log-out").hidden = true;
  setText(document.getElementById("link"), "");
  const problem = h("p", { className: "note", role: "alert", hidden: !trouble }, trouble);
  const token = h("input", { type: "password", id: "token", required: true, autocomplete: "current-password", "aria-describedby": "token-hint" });
  const form = h(
    "form",
    { className: "card form narrow" },
    h("p", { className: "field" }, h("label", { for: "token" }, "Token"), token, h("small", { id: "token-hint", className: "muted" }, "The text in operator.token (to look) or coordinator.token (to start and stop studies), in the control plane's tokens folder.")),
    problem,
    h("button", { type: "submit", className: "primary" }, "Log in")
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      state.session = await logIn(token.value.trim());
    } catch (error) {
      problem.hidden = false;
      setText(problem, error.message);
      token.focus();
      return;
    }
    await enter();
  });
  document.title = "Log in – fedward";
  main.replaceChildren(h("h1", {}, "Log in"), form);
  token.focus();
}

function choose() {
  const [first, name] = location.pathname.split("/").filter(Boolean).map(decodeURIComponent);
  if (first === "studies" && name) return studyPage(name);
  if (first === "hospitals" && name) return hospitalPage(name, new URLSearchParams(location.search).get("study"));
  if (first === "new-study") return newStudyPage(go);
  return overview();
}

function show() {
  page = choose();
  document.title = `${page.title} – fedward`;
  main.replaceChildren(page.element);
  for (const link of document.querySelectorAll("#pages a")) {
    if (link.getAttribute("href") === location.pathname) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  page.changed("all");
}

function go(path) {
  history.pushState(null, "", path);
  show();
  main.focus();
  scrollTo(0, 0);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='/']");
  if (link === null || event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0 || page === null) return;
  event.preventDefault();
  go(link.getAttribute("href"));
});
addEventListener("popstate", () => page !== null && show());

subscribe((what, item) => {
  if (what === "ended") return showLogIn("The session has ended; log in again.");
  if (what === "link") {
    const pill = document.getElementById("link");
    setText(pill, state.linked ? "live" : "reconnecting");
    pill.dataset.tone = state.linked ? "good" : "warn";
  }
  if (what === "event" && ["round_finished", "study_started", "study_interrupted", "study_ended"].includes(item.event.kind)) {
    announce(`${item.event.study_id}: ${sentence(item.event)}`);
  }
  page?.changed(what, item);
});
setInterval(() => page?.changed("tick"), 5000);

document.getElementById("log-out").addEventListener("click", async () => {
  await logOut().catch(() => null);
  showLogIn("");
});
document.getElementById("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const other = dark === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = other;
  localStorage.setItem("theme", other);
  redrawAll();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);

start();
