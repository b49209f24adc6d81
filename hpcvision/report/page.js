"use strict";
// Charts are drawn from the JSON beside them, in SVG; tables are sorted and filtered in place. Nothing is fetched.
const SVG = "http://www.w3.org/2000/svg", WIDTH = 520, LEFT = 62, RIGHT = 26, BOTTOM = 44, ROW = 18, FRAME = 264;
const DASHES = ["", "6 3", "2 3"], MARKED = 60; // so many points of a line are marked one by one
const make = (name, attributes, parent, text) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
};
const brief = (value) => {
  if (value === null || Number.isNaN(value)) return "none";
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return value.toLocaleString("en-GB");
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3)) return value.toExponential(2);
  return value.toLocaleString("en-GB", { maximumSignificantDigits: 5 });
};
const short = (words) => (words.length > 12 ? `${words.slice(0, 11)}…` : words);
const ends = (values) => {
  const low = Math.min(...values), high = Math.max(...values), size = Math.max(Math.abs(low), Math.abs(high));
  return high - low > 1e-9 * size ? [low, high] : [low - 0.5 * (size || 1), high + 0.5 * (size || 1)];
};
const ticks = (low, high) => {
  const step = 10 ** Math.floor(Math.log10((high - low) / 4)), factor = [1, 2, 5, 10].find((f) => (high - low) / (f * step) <= 6);
  const first = Math.ceil(low / (factor * step)), count = Math.floor(high / (factor * step)) - first + 1;
  return Array.from({ length: Math.min(count, 8) }, (_, n) => Number(((first + n) * factor * step).toPrecision(12)));
};

function chart(figure) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const svg = figure.querySelector("svg"), told = figure.querySelector("output");
  const scale = spec.log ? Math.log10 : (x) => x;
  const points = spec.series.flatMap((series, index) => series.x.map((x, i) => ({ raw: x, x: scale(x), y: series.y[i], series, index, i })))
    .filter((point) => point.y !== null && Number.isFinite(point.x)).sort((a, b) => a.x - b.x);
  if (!points.length) { told.textContent = "no points"; return; }
  const TOP = 12 + ROW * spec.series.length, HEIGHT = TOP + FRAME + BOTTOM, all = ends(points.map((point) => point.x));
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  let [first, last] = all, low = 0, high = 1, at = points.length - 1, from = null, clicked = -Infinity;
  const put = (x) => LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT);
  const up = (y) => HEIGHT - BOTTOM - (y - low) / (high - low) * FRAME;
  const place = (event) => { const box = svg.getBoundingClientRect();
    return { left: (event.clientX - box.left) / box.width * WIDTH, top: (event.clientY - box.top) / box.height * HEIGHT }; };
  const take = (event) => first + (place(event).left - LEFT) / (WIDTH - LEFT - RIGHT) * (last - first);
  const visible = (point) => point.x >= first && point.x <= last;

  const drawAxes = () => {
    for (const tick of ticks(low, high)) {
      make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: up(tick), y2: up(tick) }, svg);
      make("text", { x: LEFT - 6, y: up(tick) + 4, "text-anchor": "end" }, svg, brief(tick));
    }
    const named = spec.ticks?.map((_, i) => i).filter((i) => i >= first && i <= last);
    const every = named ? Math.ceil(named.length / 5) : 1;
    for (const tick of named ? named.filter((_, i) => i % every === 0) : ticks(first, last))
      make("text", { class: "tick", x: put(tick), y: HEIGHT - BOTTOM + 18, "text-anchor": put(tick) > WIDTH - 60 ? "end" : "middle" }, svg,
        named ? short(spec.ticks[tick]) : brief(spec.log ? 10 ** tick : tick));
    make("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, svg, spec.x);
  };
  const drawSeries = (series, index) => {
    const own = points.filter((point) => point.index === index), inside = own.filter(visible), style = `c${index % 3}`;
    if (!spec.points) {
      // Also the neighbours of what is seen: a line goes on to the edge.
      const start = own.findIndex(visible), near = start < 0 ? [] : own.slice(Math.max(0, start - 1), start + inside.length + 1);
      make("polyline", { class: `series ${style}`, points: near.map((point) => `${put(point.x)},${up(point.y)}`).join(" "),
        "stroke-dasharray": DASHES[index % 3], "clip-path": `url(#${figure.id}-frame)` }, svg);
    }
    if (spec.points || inside.length <= MARKED) for (const point of inside)
      make("circle", { class: style, cx: put(point.x), cy: up(point.y), r: spec.points ? 4 : 2.2, "fill-opacity": series.hollow ? 0 : 0.8 }, svg);
    const y = 6 + ROW * (index + 0.5);
    if (spec.points) make("circle", { class: style, cx: LEFT + 12, cy: y, r: 4, "fill-opacity": series.hollow ? 0 : 0.8 }, svg);
    else make("line", { class: `series ${style}`, x1: LEFT, x2: LEFT + 24, y1: y, y2: y, "stroke-dasharray": DASHES[index % 3] }, svg);
    make("text", { x: LEFT + 32, y: y + 4 }, svg, series.name);
  };
  const draw = () => {
    svg.replaceChildren();
    const clip = make("clipPath", { id: `${figure.id}-frame` }, svg);
    make("rect", { x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT, height: FRAME }, clip);
    const seen = points.filter(visible);
    [low, high] = ends((seen.length ? seen : points).map((point) => point.y));
    const pad = 0.05 * (high - low);
    low -= pad; high += pad;
    drawAxes();
    spec.series.forEach(drawSeries);
    const point = points[at];
    if (visible(point)) {
      make("line", { class: "cursor", x1: put(point.x), x2: put(point.x), y1: TOP, y2: HEIGHT - BOTTOM }, svg);
      make("circle", { class: `c${point.index % 3}`, cx: put(point.x), cy: up(point.y), r: 5 }, svg);
    }
    make("rect", { class: "frame", x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT, height: FRAME }, svg);
    if (from?.to !== undefined)
      make("rect", { class: "zoom", x: put(Math.min(from.x, from.to)), y: TOP, height: FRAME, width: Math.abs(put(from.to) - put(from.x)) }, svg);
  };
  const tell = () => {
    const point = points[at], label = point.series.labels ? `${point.series.labels[point.i]}: ` : "";
    told.textContent = `${label}${spec.x} ${spec.ticks ? spec.ticks[point.x] : brief(point.raw)}, ${point.series.name} ${brief(point.y)}`;
    draw();
  };
  // Of the points in the mouse's column the one at its height; a pixel to the side counts as much as ten up or down.
  const nearest = ({ left, top }) => {
    let best = at, least = Infinity;
    points.forEach((point, i) => {
      const far = visible(point) ? 10 * Math.abs(put(point.x) - left) + Math.abs(up(point.y) - top) : Infinity;
      if (far < least) { least = far; best = i; }
    });
    return best;
  };
  const zoom = (from, to) => { if (to - from > 1e-9 * (all[1] - all[0])) [first, last] = [from, to]; draw(); };
  const step = (by) => {
    at = Math.min(points.length - 1, Math.max(0, at + by));
    const x = points[at].x, span = last - first;
    if (!visible(points[at])) [first, last] = x < first ? [x, x + span] : [x - span, x];
    tell();
  };
  svg.addEventListener("pointermove", (event) => {
    const was = at;
    if (from) from.to = take(event);
    at = nearest(place(event));
    if (from || at !== was) tell();
  });
  svg.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    from = { x: take(event) };
    svg.setPointerCapture(event.pointerId);
  });
  // Two clicks show everything again; "dblclick" does not come, as the chart is drawn anew between them.
  svg.addEventListener("pointerup", (event) => {
    const was = from, dragged = was?.to !== undefined && Math.abs(put(was.to) - put(was.x)) > 8;
    from = null;
    if (dragged) zoom(Math.max(all[0], Math.min(was.x, was.to)), Math.min(all[1], Math.max(was.x, was.to)));
    else if (event.timeStamp - clicked < 400) zoom(...all);
    else draw();
    clicked = dragged ? -Infinity : event.timeStamp;
  });
  svg.addEventListener("pointercancel", () => { from = null; draw(); });
  svg.addEventListener("keydown", (event) => {
    const middle = points[at].x, span = last - first;
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "Home") step(-points.length);
    else if (event.key === "End") step(points.length);
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
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: [...row.cells].map((cell) => cell.textContent).join("\n").toLowerCase() }));
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { row, text } of rows) { row.hidden = !words.every((word) => text.includes(word)); shown += !row.hidden; }
    count.textContent = `${shown} of ${rows.length}`;
  });
}

document.querySelectorAll(".chart").forEach((figure, number) => { figure.id = `chart-${number}`; chart(figure); });
document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("input[type=search]").forEach(filtered);
