"use strict";
// Charts are drawn from the JSON beside them, in SVG; tables are sorted and filtered in place. Nothing is fetched.
const SVG = "http://www.w3.org/2000/svg", WIDTH = 520, HEIGHT = 320, LEFT = 62, RIGHT = 26, TOP = 12, BOTTOM = 44;
const make = (name, attributes, parent, text) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
};
const brief = (value) => {
  if (value === null || Number.isNaN(value)) return "none";
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3)) return value.toExponential(2);
  return value.toLocaleString("en-GB", { maximumSignificantDigits: 5 });
};
const ticks = (low, high) => {
  const step = 10 ** Math.floor(Math.log10((high - low) / 4)), factor = [1, 2, 5, 10].find((f) => (high - low) / (f * step) <= 6);
  const found = [];
  for (let n = Math.ceil(low / (factor * step)); n * factor * step <= high; n++) found.push(Number((n * factor * step).toPrecision(12)));
  return found;
};

function chart(figure) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const svg = figure.querySelector("svg"), told = figure.querySelector("output");
  const log = spec.log ? Math.log10 : (x) => x, unlog = spec.log ? (x) => 10 ** x : (x) => x;
  const points = spec.series.flatMap((series, index) => series.x.map((x, i) => ({ x: log(x), y: series.y[i], series, index, i })))
    .filter((point) => point.y !== null && Number.isFinite(point.x)).sort((a, b) => a.x - b.x);
  if (!points.length) { told.textContent = "no points"; return; }
  const ends = (values) => { const low = Math.min(...values), high = Math.max(...values);
    return low === high ? [low - 0.5, high + 0.5] : [low, high]; };
  const all = ends(points.map((point) => point.x));
  let [first, last] = all, at = points.length - 1, from = null, clicked = -Infinity;
  const put = (x) => LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT);
  const take = (event) => { const box = svg.getBoundingClientRect();
    return first + ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (last - first); };
  const draw = () => {
    svg.replaceChildren();
    const seen = points.filter((point) => point.x >= first && point.x <= last);
    let [low, high] = ends((seen.length ? seen : points).map((point) => point.y));
    const pad = 0.05 * (high - low); low -= pad; high += pad;
    const up = (y) => HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
    for (const tick of ticks(low, high)) {
      make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: up(tick), y2: up(tick) }, svg);
      make("text", { x: LEFT - 6, y: up(tick) + 4, "text-anchor": "end" }, svg, brief(tick));
    }
    for (const tick of spec.ticks ? spec.ticks.map((_, i) => i) : ticks(first, last))
      make("text", { x: put(tick), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, svg,
        spec.ticks ? spec.ticks[tick] : brief(unlog(tick)));
    make("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, svg, spec.x);
    // The words for the lines stand where the first line is not.
    const falls = points.find((point) => point.index === 0)?.y > points.findLast((point) => point.index === 0)?.y;
    const words = falls ? WIDTH - RIGHT - 225 : LEFT;
    spec.series.forEach((series, index) => {
      const own = seen.filter((point) => point.index === index), style = { class: `series c${index % 3}` };
      if (spec.points) for (const point of own)
        make("circle", { class: `c${index % 3}`, cx: put(point.x), cy: up(point.y), r: 4, "fill-opacity": series.hollow ? 0 : 0.8 }, svg);
      else make("polyline", { ...style, points: own.map((point) => `${put(point.x)},${up(point.y)}`).join(" "),
        "stroke-dasharray": ["", "6 3", "2 3"][index % 3] }, svg);
      make("line", { ...style, x1: words + 8, x2: words + 30, y1: TOP + 12 + 18 * index, y2: TOP + 12 + 18 * index,
        "stroke-dasharray": spec.points ? "" : ["", "6 3", "2 3"][index % 3] }, svg);
      make("text", { x: words + 36, y: TOP + 16 + 18 * index }, svg, series.name);
    });
    const point = points[at];
    if (point.x >= first && point.x <= last) {
      make("line", { class: "cursor", x1: put(point.x), x2: put(point.x), y1: TOP, y2: HEIGHT - BOTTOM }, svg);
      make("circle", { class: `c${point.index % 3}`, cx: put(point.x), cy: up(point.y), r: 5 }, svg);
    }
    make("rect", { class: "frame", x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM }, svg);
    if (from !== null && from.to !== undefined)
      make("rect", { class: "zoom", x: put(Math.min(from.x, from.to)), y: TOP, height: HEIGHT - TOP - BOTTOM,
        width: Math.abs(put(from.to) - put(from.x)) }, svg);
  };
  const tell = () => {
    const point = points[at], label = point.series.labels ? `${point.series.labels[point.i]}: ` : "";
    const x = spec.ticks ? spec.ticks[point.x] : brief(unlog(point.x));
    told.textContent = `${label}${spec.x} ${x}, ${point.series.name} ${brief(point.y)}`;
    draw();
  };
  const nearest = (x, y) => { let best = 0, least = Infinity;
    points.forEach((point, i) => { const far = Math.abs(point.x - x) + 1e-9 * Math.abs(point.y - y);
      if (far < least) { least = far; best = i; } });
    return best; };
  const zoom = (low, high) => { if (high - low > 1e-9 * (all[1] - all[0])) [first, last] = [low, high]; draw(); };
  svg.addEventListener("pointermove", (event) => { if (from) from.to = take(event); at = nearest(take(event), 0); tell(); });
  svg.addEventListener("pointerdown", (event) => { from = { x: take(event) }; svg.setPointerCapture(event.pointerId); });
  // Two clicks show everything again; "dblclick" does not come, as the chart is drawn anew between them.
  svg.addEventListener("pointerup", (event) => {
    const was = from, dragged = was?.to !== undefined && Math.abs(put(was.to) - put(was.x)) > 8;
    from = null;
    if (dragged) zoom(Math.min(was.x, was.to), Math.max(was.x, was.to));
    else if (event.timeStamp - clicked < 400) zoom(...all);
    else draw();
    clicked = dragged ? -Infinity : event.timeStamp;
  });
  svg.addEventListener("keydown", (event) => {
    const middle = points[at].x, span = last - first;
    if (event.key === "ArrowRight") { at = Math.min(points.length - 1, at + 1); tell(); }
    else if (event.key === "ArrowLeft") { at = Math.max(0, at - 1); tell(); }
    else if (event.key === "+") zoom(Math.max(all[0], middle - span / 4), Math.min(all[1], middle + span / 4));
    else if (event.key === "-") zoom(...all);
    else return;
    event.preventDefault();
  });
  tell();
}

function sortable(table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const falling = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent, number = head.classList.contains("number");
    const rows = [...body.rows].map((row) => ({ row, key: number ? parseFloat(key(row)) : key(row) }));
    rows.sort((a, b) => {
      if (number) return (Number.isNaN(a.key) - Number.isNaN(b.key)) || (falling ? b.key - a.key : a.key - b.key);
      return (falling ? -1 : 1) * a.key.localeCompare(b.key, "en", { numeric: true });
    });
    body.append(...rows.map((item) => item.row));
  }));
}

function filtered(input) {
  const table = document.getElementById(input.getAttribute("aria-controls")), count = document.getElementById(input.dataset.count);
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { row, text } of rows) { row.hidden = !words.every((word) => text.includes(word)); shown += !row.hidden; }
    count.textContent = `${shown} of ${rows.length}`;
  });
}

document.querySelectorAll(".chart").forEach(chart);
document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("input[type=search]").forEach(filtered);
