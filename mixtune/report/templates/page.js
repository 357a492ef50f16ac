"use strict";
const all = (what, where = document) => [...where.querySelectorAll(what)];
const root = document.documentElement;
for (const part of all("[data-script]")) part.hidden = false;

// Theme: what the system says, light or dark. Storage may be forbidden for files.
const themes = ["auto", "light", "dark"];
const button = document.getElementById("theme");
const kept = { get() { try { return localStorage.getItem("mixtune-theme"); } catch { return null; } },
  set(value) { try { localStorage.setItem("mixtune-theme", value); } catch { /* kept for this visit only */ } } };
function setTheme(name) {
  if (name === "auto") delete root.dataset.theme; else root.dataset.theme = name;
  button.textContent = "Theme: " + name;
}
let theme = themes.includes(kept.get()) ? kept.get() : "auto";
setTheme(theme);
button.addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % 3];
  setTheme(theme);
  kept.set(theme);
});

// Tables: sort by a column; numbers as numbers, what has no number last.
function sortKey(row, column) {
  const cell = row.cells[column];
  const text = (cell.dataset.v ?? cell.textContent).trim();
  const number = parseFloat(text.replace("\u2212", "-").replace("<", ""));
  return /\b(n|cell)\b/.test(cell.className) ? number : text;
}
function order(a, b) {
  if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
  return Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : a - b;
}
for (const table of all("table.sort")) {
  const heads = all("thead th", table);
  heads.forEach((head, column) => {
    const press = document.createElement("button");
    press.type = "button";
    press.append(...head.childNodes);
    head.append(press);
    press.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [sortKey(row, column), row]);
      const hollow = (key) => typeof key === "number" && Number.isNaN(key);
      rows.sort(([a], [b]) => (down && !hollow(a) && !hollow(b) ? order(b, a) : order(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// Heat map: the row and column of a cell stand out; arrow keys walk, the line below reads it out.
for (const panel of all(".heat .panel")) {
  const svg = panel.querySelector("svg");
  const said = panel.querySelector(".readout");
  const cells = all(".c[data-r]", svg);
  const idle = said.textContent;
  const point = (cell) => {
    svg.classList.toggle("on", Boolean(cell));
    for (const part of all(".hit, .at", svg)) part.classList.remove("hit", "at");
    said.textContent = cell ? cell.querySelector("title").textContent.replaceAll("; ", "\n") : idle;
    said.classList.toggle("said", Boolean(cell));
    if (!cell) return;
    const { r, c } = cell.dataset;
    for (const part of all(`[data-r="${r}"], [data-c="${c}"]`, svg)) part.classList.add("hit");
    cell.classList.add("at");
  };
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("pointerover", (event) => point(event.target.closest(".c[data-r]")));
  svg.addEventListener("pointerleave", () => point(null));
  svg.addEventListener("focus", () => point(cells[0]));
  svg.addEventListener("blur", () => point(null));
  svg.addEventListener("keydown", (event) => {
    const at = svg.querySelector(".at");
    const move = moves[event.key];
    if (!at || !move) return;
    event.preventDefault();
    const [r, c] = [Number(at.dataset.r) + move[0], Number(at.dataset.c) + move[1]];
    point(svg.querySelector(`.c[data-r="${r}"][data-c="${c}"]`) ?? at);
  });
}

// One heat map at a time.
const panels = all(".heat .panel");
const chooser = document.getElementById("panels");
if (panels.length > 1) {
  const show = (chosen) => panels.forEach((panel, i) => {
    panel.hidden = i !== chosen;
    chooser.children[i].setAttribute("aria-pressed", String(i === chosen));
  });
  panels.forEach((panel, i) => {
    const press = document.createElement("button");
    press.type = "button";
    press.textContent = panel.querySelector("h3").textContent;
    press.addEventListener("click", () => show(i));
    chooser.append(press);
  });
  show(0);
}

// Runs: by text and state.
const search = document.getElementById("find");
const state = document.getElementById("state");
const rows = all("#run-table tbody tr");
function filter() {
  const words = search.value.toLowerCase();
  for (const row of rows) {
    const fits = !state.value || row.dataset.state === state.value;
    row.hidden = !(fits && row.textContent.toLowerCase().includes(words));
  }
  document.getElementById("found").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
}
for (const state_ of new Set(rows.map((row) => row.dataset.state))) state.append(new Option(state_, state_));
search.addEventListener("input", filter);
state.addEventListener("change", filter);

addEventListener("beforeprint", () => { for (const part of all("details")) part.open = true; });
