// Elements without a framework: make them once, then change only the text that changed, so that
// focus, selection and a screen reader's place survive every update.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function setText(element, text) {
  const wanted = String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

export function setAttribute(element, name, value) {
  if (value === null || value === undefined) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

let announced = "";
export function announce(text) {
  if (text === announced) return;
  announced = text;
  document.getElementById("announce").textContent = text;
}

// A table whose rows are kept by key. A column is {head, cell(row, td), minor, number}; `cell`
// returns text, or fills the td itself and returns nothing.
export function table({ caption, columns, key, empty }) {
  const body = h("tbody");
  const element = h(
    "div",
    { className: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
    h(
      "table",
      {},
      h("caption", { className: "visually-hidden" }, caption),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ...columns.map((column) =>
            h("th", { scope: "col", className: classes(column) }, column.head)
          )
        )
      ),
      body
    )
  );
  const none = h("p", { className: "muted", hidden: true }, empty ?? "Nothing yet.");
  const rows = new Map();

  function update(items) {
    const wanted = new Set();
    let place = body.firstElementChild;
    for (const item of items) {
      const name = String(key(item));
      wanted.add(name);
      let row = rows.get(name);
      if (row === undefined) {
        row = h(
          "tr",
          {},
          ...columns.map((column, index) =>
            h(index === 0 ? "th" : "td", {
              className: classes(column),
              scope: index === 0 ? "row" : undefined,
            })
          )
        );
        rows.set(name, row);
      }
      columns.forEach((column, index) => {
        const text = column.cell(item, row.children[index]);
        if (text !== undefined) setText(row.children[index], text);
      });
      if (row === place) place = place.nextElementSibling;
      else body.insertBefore(row, place);
    }
    for (const [name, row] of rows) {
      if (!wanted.has(name)) {
        row.remove();
        rows.delete(name);
      }
    }
    none.hidden = items.length > 0;
    element.hidden = items.length === 0;
  }

  return { element: h("div", {}, element, none), update };
}

function classes(column) {
  return [column.number ? "number" : "", column.minor ? "minor" : ""].join(" ").trim() || undefined;
}

// A cell that holds one link, made once.
export function linkCell(td, href, text) {
  let link = td.firstElementChild;
  if (link === null) {
    link = h("a", {});
    td.append(link);
  }
  setAttribute(link, "href", href);
  setText(link, text);
}

// A cell with a word in a coloured pill; the word says it, the colour only helps.
export function pillCell(td, text, tone) {
  let pill = td.firstElementChild;
  if (pill === null) {
    pill = h("span", { className: "pill" });
    td.append(pill);
  }
  setText(pill, text);
  setAttribute(pill, "data-tone", tone);
}

// A cell with a bar and the figure beside it.
export function barCell(td, fraction, text, label) {
  if (td.firstElementChild === null) {
    td.append(h("span", { className: "bar" }, h("progress", { max: "1" }), h("span", {})));
  }
  const [progress, words] = td.firstElementChild.children;
  progress.hidden = fraction === null;
  if (fraction !== null) {
    progress.value = fraction;
    setAttribute(progress, "aria-label", label);
  }
  setText(words, text);
}
