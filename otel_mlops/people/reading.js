// Reading the metrics: the text format, what counters grew by between two readings, quantiles of buckets.

const LINE = /^([a-zA-Z_:][\w:]*)[ \t]*(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*$/s;
const LABEL = /([a-zA-Z_]\w*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"/gs;
const WORDS = new Map([["nan", NaN], ["inf", Infinity], ["+inf", Infinity], ["-inf", -Infinity]]);

/** A number of the text format; undefined where it is none. */
function number(text) {
  if (/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text)) return Number(text);
  return WORDS.get(text.toLowerCase());
}

function unescaped(text) {
  return text.replace(/\\(.)/gs, (both, next) => (next === "n" ? "\n" : next === '"' || next === "\\" ? next : both));
}

/** The series of a page: for each name a list of {key, labels, value}. A line that is none is left out. */
function parse(text) {
  const reading = new Map();
  for (const line of text.split("\n")) {
    if (line === "" || line[0] === "#") continue;
    const found = LINE.exec(line);
    const value = found && number(found[3]);
    if (value === null || value === undefined) continue;
    const labels = Object.create(null);
    for (const [, name, quoted] of (found[2] ?? "").matchAll(LABEL)) labels[name] = unescaped(quoted);
    if (!reading.has(found[1])) reading.set(found[1], []);
    reading.get(found[1]).push({ key: found[2] ?? "", labels, value });
  }
  return reading;
}

/** What counters grew by over the last readings. Of one that fell, as its service began anew, it is all of it. */
class Growth {
  constructor(names, windowMs) {
    this.names = names;
    this.windowMs = windowMs;
    this.last = null;
    this.steps = [];
  }

  add(reading, at) {
    if (this.last && at <= this.last.at) [this.last, this.steps] = [null, []]; // somebody has set the clock
    const values = new Map();
    const grown = [];
    for (const name of this.names) {
      for (const { key, labels, value } of reading.get(name) ?? []) {
        if (!Number.isFinite(value)) continue;
        const id = `${name}{${key}`;
        values.set(id, value);
        const before = this.last?.values.get(id) ?? 0;
        const increment = value < before ? value : value - before;
        if (this.last && increment > 0) grown.push({ id, name, key, labels, increment });
      }
    }
    if (this.last) this.steps.push({ from: this.last.at, at, grown });
    this.last = { values, at };
    this.steps = this.steps.filter((step) => step === this.steps.at(-1) || step.from >= at - this.windowMs);
  }

  /** Seconds that the growth is over; 0 before the second reading. */
  get seconds() {
    return this.steps.length ? (this.steps.at(-1).at - this.steps[0].from) / 1000 : 0;
  }

  /** The growth in the form of a reading, so that both are summed up alike. */
  reading() {
    const sums = new Map();
    for (const { id, name, key, labels, increment } of this.steps.flatMap((step) => step.grown)) {
      if (!sums.has(id)) sums.set(id, { name, key, labels, value: 0 });
      sums.get(id).value += increment;
    }
    return grouped(sums.values(), (each) => each.name);
  }
}

/** Things by what a function says of each, in the order in which they come. */
function grouped(things, by) {
  const groups = new Map();
  for (const thing of things) {
    const name = by(thing);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(thing);
  }
  return groups;
}

/** The series of a name; with labels, or a function of them, those alone that fit. */
function series(reading, name, fits = {}) {
  const is = typeof fits === "function" ? fits : (labels) => Object.keys(fits).every((key) => labels[key] === fits[key]);
  return (reading.get(name) ?? []).filter(({ labels }) => is(labels));
}

/** The sum of the series of a name; undefined where there is none, which is not 0. */
function total(reading, name, fits) {
  const found = series(reading, name, fits).map(({ value }) => value).filter(Number.isFinite);
  return found.length ? found.reduce((sum, value) => sum + value, 0) : undefined;
}

/** The value of the first series of a name that fits; undefined where there is none or it is no number. */
function value(reading, name, fits) {
  const found = series(reading, name, fits)[0]?.value;
  return Number.isFinite(found) ? found : undefined;
}

/** A quantile of buckets, as PromQL's histogram_quantile() has it; {value, above: true} where it lies past the last. */
function quantile(q, buckets) {
  const counts = new Map();
  for (const { labels, value } of buckets) {
    const end = number(labels.le ?? "");
    if (end !== undefined && !Number.isNaN(end)) counts.set(end, (counts.get(end) ?? 0) + value);
  }
  const ends = [...counts].sort(([a], [b]) => a - b);
  const rank = q * (ends.at(-1)?.[1] ?? 0);
  if (!(rank > 0)) return undefined;
  const place = ends.findIndex(([, count]) => count >= rank);
  const [end, count] = ends[place];
  const [start, below] = place ? ends[place - 1] : [0, 0];
  if (end === Infinity) return { value: start, above: true };
  if (place === 0 && end <= 0) return { value: end, above: false };
  return { value: start + ((end - start) * (rank - below)) / (count - below), above: false };
}
