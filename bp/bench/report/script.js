// What the report does on top of being read: theme, runs, boxes over marks, legends, sorting and filtering.
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const root = document.documentElement;
root.classList.add("js");

document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// Runs: one panel at a time. A link into another panel opens it.
const tabs = all("[role=tab]");
const show = (chosen) => tabs.forEach((tab) => {
  const selected = tab === chosen;
  tab.setAttribute("aria-selected", selected);
  tab.tabIndex = selected ? 0 : -1;
  document.getElementById(tab.getAttribute("aria-controls")).hidden = !selected;
});
const follow = () => {
  const panel = document.getElementById(location.hash.slice(1))?.closest(".run");
  const tab = tabs.find((each) => each.getAttribute("aria-controls") === panel?.id);
  if (tab) { show(tab); document.getElementById(location.hash.slice(1)).scrollIntoView(); }
};
tabs.forEach((tab, index) => {
  document.getElementById(tab.getAttribute("aria-controls")).setAttribute("role", "tabpanel");
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(index + step + tabs.length) % tabs.length];
    show(next);
    next.focus();
  });
});
if (tabs.length) { show(tabs[0]); follow(); addEventListener("hashchange", follow); }

// The box over a mark or a cell. In a plot the nearest mark counts, so that a finger need not hit it.
const tip = document.getElementById("tip");
const nearest = (event) => {
  const area = event.target.closest(".area");
  if (!area) return event.target.closest("[data-tip]");
  let found = null, best = 24;
  for (const mark of all(".mark:not(.dim)", area)) {
    const box = mark.getBoundingClientRect();
    const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
    if (away < best) { best = away; found = mark; }
  }
  return found;
};
const point = (event) => {
  const target = event.target.closest ? nearest(event) : null;
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const at = target.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.x + at.width / 2 - own.width / 2), innerWidth - own.width - 8);
  const above = at.y - own.height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 0 ? above : at.bottom + 8}px`;
};
for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, point);
document.addEventListener("scroll", () => { tip.hidden = true; }, true);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

// A legend's button shows its series alone; pressed again, all of them.
all("[data-alone]").forEach((button) => button.addEventListener("click", () => {
  const group = button.closest("[data-group]");
  const alone = button.getAttribute("aria-pressed") === "true" ? null : button.dataset.alone;
  all("[data-alone]", group).forEach((each) => each.setAttribute("aria-pressed", each.dataset.alone === alone));
  all(".area [data-series]", group).forEach((each) => each.classList.toggle("dim", alone !== null && each.dataset.series !== alone));
}));

all("[data-choose]").forEach((select) => {
  const choices = all("[data-choice]", select.closest("[data-group]"));
  const choose = () => choices.forEach((each) => { each.hidden = each.dataset.choice !== select.value; });
  select.addEventListener("change", choose);
  choose();
});

// Tables of rows: a tbody for each row, so that what is under it moves with it.
all("table.rows").forEach((table) => {
  const bodies = [...table.tBodies];
  const heads = all(":scope > thead th", table);
  const key = (body, column) => {
    const cell = body.rows[0].cells[column];
    return heads[column].classList.contains("number") ? parseFloat(cell.dataset.key ?? "NaN") : cell.textContent;
  };
  const compare = (a, b) => typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((each) => each.setAttribute("aria-sort", each === head ? (up ? "ascending" : "descending") : "none"));
    const keyed = bodies.map((body) => [key(body, column), body]);
    keyed.sort(([a], [b]) => Number.isNaN(a) - Number.isNaN(b) || (up ? 1 : -1) * compare(a, b) || 0);
    table.append(...keyed.map(([, body]) => body));
  }));
  all(".open", table).forEach((button) => button.addEventListener("click", () => {
    const shown = button.closest("tbody").querySelector(".details").classList.toggle("shown");
    button.setAttribute("aria-expanded", shown);
  }));

  const group = table.closest("[data-group]");
  const filters = all("[data-filter]", group);
  const output = group.querySelector("output");
  const filter = () => {
    const wanted = Object.fromEntries(filters.map((each) => [each.dataset.filter, each.value]));
    const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const body of bodies) {
      const text = body.textContent.toLowerCase();
      const fits = (!wanted.family || body.dataset.family === wanted.family)
        && (!wanted.precision || body.dataset.precision === wanted.precision)
        && (!wanted.state || body.dataset.state.split(" ").includes(wanted.state))
        && words.every((word) => text.includes(word));
      body.hidden = !fits;
      count += fits;
    }
    output.textContent = count === bodies.length ? `${count} rows` : `${count} of ${bodies.length} rows`;
  };
  filters.forEach((each) => each.addEventListener("input", filter));
});
