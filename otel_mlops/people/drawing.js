// Numbers as people read them, and the parts of the page that show them. Text becomes text, never HTML.

const SVG = "http://www.w3.org/2000/svg";
const NONE = "–";
const GAP = "\u00a0"; // a number and its unit stay on a line

const digits = (value, most) => value.toLocaleString("en", { maximumFractionDigits: most, minimumFractionDigits: 0 });

/** A number with three figures that tell something, in thousands and further where it is large. */
function plain(value) {
  if (value === undefined || Number.isNaN(value)) return NONE;
  const size = Math.abs(value);
  if (size === Infinity) return value > 0 ? "∞" : "−∞";
  if (size >= 1e15) return value.toExponential(2);
  if (size >= 100 || Number.isInteger(value)) return digits(value, 0);
  if (size < 0.001) return value.toPrecision(2);
  return digits(value, size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

/** A value in the largest of the units, [from this on, divided by, unit], that it reaches. */
function scaled(value, units) {
  if (!Number.isFinite(value)) return plain(value);
  const [, by, unit] = units.find(([from]) => Math.abs(value) >= from) ?? units.at(-1);
  return `${plain(value / by)}${GAP}${unit}`;
}

const TIMES = [[172800, 86400, "d"], [7200, 3600, "h"], [120, 60, "min"], [1, 1, "s"], [1e-3, 1e-3, "ms"], [0, 1e-6, "µs"]];
const SIZES = [[2 ** 40, 2 ** 40, "TiB"], [2 ** 30, 2 ** 30, "GiB"], [2 ** 20, 2 ** 20, "MiB"], [1024, 1024, "KiB"], [0, 1, "B"]];

const duration = (seconds) => scaled(seconds, TIMES);
const bytes = (size) => scaled(size, SIZES);
const percent = (ratio) => (Number.isFinite(ratio) ? `${plain(100 * ratio)}${GAP}%` : NONE);
const rate = (value) =>
  !Number.isFinite(value) ? NONE : value > 0 && value < 0.1 ? `${plain(60 * value)}${GAP}/min` : `${plain(value)}${GAP}/s`;
const unit = (value, name) => (Number.isFinite(value) ? `${plain(value)}${GAP}${name}` : NONE);
const ofMost = (used, most, show = bytes) => (most === undefined ? show(used) : `${show(used)} of ${show(most)}`);
const clock = (at) => new Date(at).toLocaleTimeString("en-GB");
const latency = (found) => (found === undefined ? NONE : `${found.above ? "> " : ""}${duration(found.value)}`);

/** The largest value of things that have one; 0 at least. */
const highest = (things) => things.reduce((most, { value }) => (value > most ? value : most), 0);

/** An element with attributes and children; a child that is text stays text. */
function element(tag, attributes = {}, ...children) {
  const made = tag === "svg" || tag === "path" || tag === "rect" ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, text] of Object.entries(attributes)) made.setAttribute(name, text);
  made.append(...children);
  return made;
}

/** Set a text, where it is another: what a person has selected stays selected, and a reader is not told it again. */
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Say a text, and how good or bad it is: `bad`, `warn`, `good` or nothing. */
function mark(node, { text, mark = "" }) {
  say(node, text);
  node.dataset.mark = mark;
}

/** Have so many children of a kind, those that are there already first. */
function children(parent, count, make) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(make());
  return [...parent.children];
}

/** A line of the last minutes, from 0 to `most` or to its highest point. It breaks where readings lack. */
class Sparkline {
  constructor(keepMs) {
    this.keepMs = keepMs;
    this.points = [];
    this.line = element("path", { class: "line" });
    this.area = element("path", { class: "area" });
    const box = { class: "sparkline", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" };
    this.node = element("svg", box, this.area, this.line);
  }

  add(at, value, gapMs, most) {
    this.points = this.points.filter((point) => point.at >= at - this.keepMs && point.at < at);
    this.points.push({ at, value });
    const top = most ?? 1.1 * highest(this.points);
    const spanMs = Math.max(60_000, at - this.points[0].at);
    const runs = [];
    let before = null;
    for (const point of this.points) {
      if (Number.isFinite(point.value)) {
        const x = 100 - (100 * (at - point.at)) / spanMs;
        const y = 29 - 27 * (top > 0 ? Math.min(1, point.value / top) : 0);
        if (before === null || point.at - before > gapMs) runs.push([]);
        runs.at(-1).push([x.toFixed(2), y.toFixed(2)]);
      }
      before = Number.isFinite(point.value) ? point.at : null;
    }
    const lines = runs.map((run) => `M${run.map((pair) => pair.join(" ")).join("L")}`);
    this.line.setAttribute("d", lines.join(""));
    this.area.setAttribute("d", lines.map((line, i) => `${line}L${runs[i].at(-1)[0]} 30L${runs[i][0][0]} 30Z`).join(""));
  }
}

/** A number in large figures with what belongs to it. */
class Tile {
  constructor(parent, title, keepMs) {
    this.figure = element("p", { class: "figure" });
    this.detail = element("p", { class: "detail" });
    this.sparkline = new Sparkline(keepMs);
    this.node = element("div", { class: "tile" }, element("h3", {}, title), this.figure, this.detail, this.sparkline.node);
    parent.append(this.node);
  }

  show({ at, gapMs, figure, detail = "", value, most, mark = "" }) {
    this.node.hidden = figure === undefined;
    if (figure === undefined) return;
    say(this.figure, figure);
    say(this.detail, detail);
    this.node.dataset.mark = mark;
    this.sparkline.add(at, value, gapMs, most);
  }
}

/** A share as a bar beside its number, with a tick at the threshold where there is one. */
function bar(share, tick) {
  const full = element("rect", { class: "full", width: "100", height: "6" });
  const part = element("rect", { class: "part", height: "6", width: String(100 * Math.max(0, Math.min(1, share))) });
  const shown = element("svg", { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }, full, part);
  if (tick !== undefined) shown.append(element("rect", { class: "tick", x: String(100 * tick - 0.5), width: "1.5", height: "6" }));
  return shown;
}

/** A section with a table of at most so many rows, the rest of which is a number. Without rows it is not there. */
class Table {
  constructor(parent, title, columns, { most = 10, wide = false } = {}) {
    this.columns = columns;
    this.most = most;
    this.body = element("tbody");
    this.more = element("p", { class: "more" });
    const id = `h-${title.toLowerCase().replace(/\W+/g, "-")}`;
    const head = element("tr", {}, ...columns.map(({ name, n }) => element("th", { scope: "col", class: n ? "n" : "" }, name)));
    const caption = element("caption", { class: "unseen" }, title);
    const table = element("table", {}, caption, element("thead", {}, head), this.body);
    this.node = element("section", { "aria-labelledby": id, class: wide ? "wide" : "" }, element("h2", { id }, title), table, this.more);
    this.node.hidden = true;
    parent.append(this.node);
  }

  /** Show what `make` says of each thing: cells, each a text or {text, mark, bar}. */
  show(things, make) {
    this.node.hidden = things.length === 0;
    const shown = things.slice(0, this.most).map(make);
    children(this.body, shown.length, () => this.row()).forEach((row, i) =>
      [...row.children].forEach((cell, j) => this.fill(cell, shown[i][j])),
    );
    say(this.more, things.length > this.most ? `and ${plain(things.length - this.most)} more` : "");
  }

  row() {
    const cell = ({ name, n }, i) =>
      element(i ? "td" : "th", { "data-name": name, class: n ? "n" : "", ...(i ? {} : { scope: "row" }) }, element("span"));
    return element("tr", {}, ...this.columns.map(cell));
  }

  fill(cell, content) {
    const { text, mark: which, bar: drawn } = typeof content === "object" ? content : { text: content ?? NONE };
    mark(cell.firstElementChild, { text, mark: which });
    cell.querySelector("svg")?.remove();
    if (drawn) cell.append(drawn);
  }
}
