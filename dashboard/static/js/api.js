// The API as the page uses it: the session's cookie, its CSRF value, problems as errors.

let csrf = "";

export class ProblemError extends Error {
  constructor(status, body) {
    super(body.detail ?? `the control plane answered ${status}`);
    this.status = status;
    this.errors = body.errors ?? [];
  }
}

async function call(method, path, body) {
  const headers = { accept: "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  if (method !== "GET") headers["x-fedward-csrf"] = csrf;
  const answer = await fetch(path, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.status === 204) return null;
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ProblemError(answer.status, found);
  return found;
}

export const get = (path) => call("GET", path);
export const post = (path, body) => call("POST", path, body ?? {});

async function keep(session) {
  csrf = session.csrf;
  return session;
}

export const readSession = async () => keep(await call("GET", "/api/v1/session"));
export const logIn = async (token) => keep(await call("POST", "/api/v1/session", { token }));
export const logOut = () => call("DELETE", "/api/v1/session");

// Every item of a paged list.
export async function all(path) {
  const items = [];
  let next = null;
  do {
    const joint = path.includes("?") ? "&" : "?";
    const page = await get(next === null ? path : `${path}${joint}after=${encodeURIComponent(next)}`);
    items.push(...page.items);
    next = page.next;
  } while (next !== null);
  return items;
}
