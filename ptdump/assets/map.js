"use strict";
// Draws the data of the page: spans of physical memory, in pages, and who has them.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 4096, COLUMNS = 32, ROWS = 16, CELLS = COLUMNS * ROWS;
const SIDE = 23, GAP = 2, LEFT = 108;
const svgNS = "http://www.w3.org/2000/svg";
const grid = document.getElementById("grid"), path = document.getElementById("path");
const runs = document.getElementById("runs"), tip = document.getElementById("tip");
const { spans, owners, areas, places } = data;
// A view is a start and the pages of a cell; the trail leads from the whole to what is shown.
let trail = [];

const hex = (page) => "0x" + (page * PAGE).toString(16).padStart(10, "0");
const grouped = (n) => n.toString().replace(/\B(?=(\d{3})+(?!\d))/g, " ");
function amount(pages) {
  const bytes = pages * PAGE;
  const [unit, name] = bytes >= 2 ** 30 ? [2 ** 30, "GiB"] : bytes >= 2 ** 20 ? [2 ** 20, "MiB"] : [1024, "KiB"];
  return (Math.floor((bytes / unit) * 10) / 10) + " " + name;
}
function make(name, attributes, parent) {
  const node = document.createElementNS(svgNS, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (parent) parent.append(node);
  return node;
}
const fillOf = (owner) => (owners[owner].stripes ? "url(#o" + owner + ")" : owners[owner].fill);

// The first span that ends behind `page`.
function firstBehind(page) {
  let low = 0, high = spans.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (spans[middle][0] + spans[middle][1] <= page) low = middle + 1; else high = middle;
  }
  return low;
}
function* within(start, end) {
  for (let n = firstBehind(start); n < spans.length && spans[n][0] < end; n++) {
    const [first, count, owner, gfn, noTag] = spans[n];
    const from = Math.max(first, start), to = Math.min(first + count, end);
    yield { from, to, owner, gfn: gfn < 0 ? gfn : gfn + (from - first), noTag };
  }
}
function sharesOf(start, end) {
  const shares = new Map();
  for (const span of within(start, end)) shares.set(span.owner, (shares.get(span.owner) || 0) + span.to - span.from);
  return [...shares].sort((a, b) => a[0] - b[0]);
}
function namesOf(start, end) {
  return places.filter((p) => p[0] < end && start < p[1]).map((p) => p[2]).filter((n) => n);
}

function rootView(area) {
  const [start, end] = area;
  let cell = 1;
  while ((end - Math.floor(start / (cell * COLUMNS)) * cell * COLUMNS) > cell * CELLS) cell *= 2;
  return { start: Math.floor(start / (cell * COLUMNS)) * cell * COLUMNS, cell, name: "memory from " + hex(start) };
}
function zoomed(page, cell) {
  return { start: page, cell: Math.max(1, cell / CELLS), name: hex(page) + ", " + amount(cell) };
}

function describe(start, end) {
  const lines = [hex(start) + (end - start > 1 ? " to " + hex(end) : "")];
  const list = [...within(start, end)];
  if (list.length === 1) {
    const [span] = list;
    lines.push(owners[span.owner].text + (span.gfn >= 0 ? ", guest frame 0x" + span.gfn.toString(16) : ""));
    if (span.noTag) lines.push("without allocation tags");
  } else {
    for (const [owner, pages] of sharesOf(start, end)) {
      lines.push(grouped(pages) + (pages === 1 ? " page: " : " pages: ") + owners[owner].text);
    }
  }
  if (!list.length) lines.push("nothing");
  const names = namesOf(start, end);
  if (names.length) lines.push("(" + names.slice(0, 4).join(", ") + ")");
  return lines.join("\n");
}

function drawCell(parent, view, nth) {
  const start = view.start + nth * view.cell, end = start + view.cell;
  const shares = sharesOf(start, end);
  if (!shares.length) return;
  const x = LEFT + (nth % COLUMNS) * SIDE, y = Math.floor(nth / COLUMNS) * SIDE, side = SIDE - GAP;
  const cell = make("g", { class: view.cell === 1 ? "cell page" : "cell", tabindex: 0, role: "button" }, parent);
  let left = side;
  const total = shares.reduce((sum, share) => sum + share[1], 0);
  shares.forEach(([owner, pages], n) => {
    const others = shares.length - n - 1;
    const wish = Math.max(3, Math.round((side * pages) / total));
    const height = others ? Math.max(1, Math.min(wish, left - 3 * others)) : left;
    make("rect", { x, y: y + side - left, width: side, height, fill: fillOf(owner), "data-owner": owner }, cell);
    left -= height;
  });
  make("rect", { x, y, width: side, height: side, class: "frame" }, cell);
  cell.setAttribute("aria-label", describe(start, end));
  const show = (event) => {
    tip.textContent = describe(start, end);
    tip.style.display = "block";
    tip.style.left = Math.min(event.clientX + 16, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8) + "px";
  };
  cell.addEventListener("mousemove", show);
  cell.addEventListener("mouseleave", () => (tip.style.display = "none"));
  if (view.cell > 1) {
    const zoom = () => { trail.push(zoomed(start, view.cell)); draw(); };
    cell.addEventListener("click", zoom);
    cell.addEventListener("keydown", (event) => event.key === "Enter" && zoom());
  }
}

function draw() {
  const view = trail[trail.length - 1];
  tip.style.display = "none";
  grid.querySelectorAll("g, text").forEach((node) => node.remove());
  for (let row = 0; row < ROWS; row++) {
    const start = view.start + row * COLUMNS * view.cell;
    if (!sharesOf(start, start + COLUMNS * view.cell).length) continue;
    make("text", { x: 0, y: row * SIDE + 15 }, grid).textContent = hex(start);
  }
  for (let nth = 0; nth < CELLS; nth++) drawCell(grid, view, nth);
  path.replaceChildren(...trail.map((step, n) => {
    const button = document.createElement("button");
    button.textContent = (n ? "› " : "") + step.name;
    if (n === trail.length - 1) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => { trail = trail.slice(0, n + 1); draw(); });
    return button;
  }));
  document.getElementById("scale").textContent = "A square is " + amount(view.cell) +
    (view.cell > 1 ? "; click one to look closer." : ", a page.");
  listRuns(view);
}

function listRuns(view) {
  const most = 200;
  const rows = [];
  let more = 0;
  for (const span of within(view.start, view.start + CELLS * view.cell)) {
    if (rows.length >= most) { more++; continue; }
    const row = document.createElement("tr");
    const cells = [hex(span.from), hex(span.to), grouped(span.to - span.from), owners[span.owner].text +
      (span.noTag ? ", no tags" : ""), span.gfn >= 0 ? "0x" + span.gfn.toString(16) : ""];
    cells.forEach((text, n) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      if (n < 3 || n === 4) cell.className = "mono";
      row.append(cell);
    });
    rows.push(row);
  }
  runs.replaceChildren(...rows);
  document.getElementById("more").textContent = more ? "and " + grouped(more) + " more" : "";
}

function highlight(owner) {
  grid.querySelectorAll("rect[data-owner]").forEach((rect) =>
    rect.classList.toggle("fade", owner !== null && rect.dataset.owner !== String(owner)));
}
document.querySelectorAll(".keys li").forEach((key) => {
  key.addEventListener("mouseenter", () => highlight(key.dataset.owner));
  key.addEventListener("mouseleave", () => highlight(null));
});
document.querySelectorAll("[data-area]").forEach((button) =>
  button.addEventListener("click", () => { trail = [rootView(areas[button.dataset.area])]; draw(); }));
document.querySelectorAll("[data-block]").forEach((button) =>
  button.addEventListener("click", () => goTo(Number(button.dataset.block))));
function goTo(page) {
  const area = areas.find((a) => a[0] <= page && page < a[1]);
  if (!area) return false;
  trail = [rootView(area)];
  while (trail[trail.length - 1].cell > 1) {
    const { start, cell } = trail[trail.length - 1];
    trail.push(zoomed(start + Math.floor((page - start) / cell) * cell, cell));
  }
  draw();
  return true;
}
document.getElementById("go").addEventListener("change", (event) => {
  const address = Number(event.target.value);
  event.target.style.borderColor = Number.isFinite(address) && goTo(Math.floor(address / PAGE)) ? "" : "#a3142e";
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && trail.length > 1) { trail.pop(); draw(); }
});
if (areas.length) { trail = [rootView(areas[0])]; draw(); }
