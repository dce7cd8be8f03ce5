// The page as a whole, and when it is read: every few seconds while somebody looks, and not at all otherwise.

const wanted = Number(new URLSearchParams(location.search).get("every"));
const EVERY_MS = 1000 * (wanted >= 1 && wanted <= 300 ? wanted : 5);
const METRICS = new URL("metrics", location.origin + location.pathname); // without the password of this page's URL
const ANSWER_MS = 15_000;
const LONGEST_WAIT_MS = 300_000;
const MOST_COMPLAINTS = 8;
const MOST_SERIES = 100;

let latest = new Map();

function showAttention(now) {
  const found = complaints(now, troubles.reading());
  const shown = found.slice(0, MOST_COMPLAINTS);
  if (found.length > shown.length) shown.push({ text: `and ${plain(found.length - shown.length)} more` });
  if (!found.length) shown.push({ mark: "good", text: "Nothing: requests, components, models, features, sources and the telemetry itself are well." });
  children(node("attention"), shown.length, () => element("li")).forEach((item, i) => mark(item, shown[i]));
  const facts = { ...series(now, "system_info")[0]?.labels, ...series(now, "target_info")[0]?.labels };
  const service = facts.service_name ?? "Service";
  say(node("service"), service);
  say(node("about"), [facts.service_version ?? facts.version, facts.deployment_environment_name ?? facts.environment].filter(Boolean).join(", "));
  document.title = `${found.length ? `(${found.length}) ` : ""}${service}`;
}

/** The list of all series, which is made only while it is open. */
function showAll() {
  if (!node("all").open) return;
  const parts = node("filter").value.toLowerCase().split(/\s+/);
  const found = [...latest].flatMap(([name, list]) => list.map(({ key, value }) => [key ? `${name}{${key}}` : name, plain(value)]))
    .filter(([text]) => parts.every((part) => text.toLowerCase().includes(part)));
  const row = () => element("tr", {}, element("th", { scope: "row" }), element("td", { class: "n" }));
  children(node("all-rows"), Math.min(found.length, MOST_SERIES), row).forEach((each, i) => found[i].forEach((text, j) => say(each.children[j], text)));
  say(node("all-more"), found.length > MOST_SERIES ? `and ${plain(found.length - MOST_SERIES)} more` : found.length ? "" : "none");
}

function show(now, at) {
  growth.add(now, at);
  troubles.add(now, at);
  const grown = growth.reading();
  latest = now;
  node("now").hidden = node("all").hidden = false;
  say(node("span"), growth.seconds ? `rates and latencies of the last ${duration(Math.round(growth.seconds))}` : "totals until the next reading");
  say(node("all-count"), plain([...now.values()].reduce((sum, list) => sum + list.length, 0)));
  showAttention(now);
  showTiles(now, grown, at, 2.5 * EVERY_MS);
  showModels(now, grown);
  showEndpoints(now, grown);
  showScores(now);
  showMachine(now, grown, at);
  showItself(now);
  showAll();
}

let timer, reading, since;
let isPaused = false;

function tell(state, text, when = "") {
  document.body.dataset.state = state;
  say(node("status"), text);
  say(node("when"), when);
}

/** The metrics as text. It throws what to say where there are none. */
async function ask(signal) {
  try {
    const answer = await fetch(METRICS, { headers: { Accept: "text/plain" }, cache: "no-store", signal });
    const isText = answer.headers.get("Content-Type")?.startsWith("text/plain");
    if (answer.ok && isText) return await answer.text();
    throw { why: answer.ok ? "what answers is not the metrics" : `the answer is ${answer.status}`, waitS: Number(answer.headers.get("Retry-After")) };
  } catch (error) {
    throw error.why ? error : { why: signal.aborted ? "it takes too long" : "it cannot be reached" };
  }
}

/** Read now, and again after a while. What is on its way from before is given up. */
async function read() {
  clearTimeout(timer);
  reading?.abort();
  const mine = (reading = new AbortController());
  if (isPaused || document.hidden) return tell("paused", "Paused", since && `read at ${clock(since)}`);
  const late = setTimeout(() => mine.abort(), ANSWER_MS);
  let waitMs = EVERY_MS;
  try {
    const text = await ask(mine.signal);
    if (mine !== reading) return;
    since = Date.now();
    show(parse(text), since);
    tell("live", "Live", `read at ${clock(since)}`);
  } catch (error) {
    if (mine !== reading) return;
    waitMs = Math.max(waitMs, Math.min(1000 * (error.waitS || 0), LONGEST_WAIT_MS));
    tell("lost", `No answer ${since ? `since ${clock(since)}` : "yet"}: ${error.why ?? `it cannot be shown, ${error}`}`);
  } finally {
    clearTimeout(late);
  }
  timer = setTimeout(read, waitMs);
}

node("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  node("pause").setAttribute("aria-pressed", String(isPaused));
  read();
});
document.addEventListener("visibilitychange", read);
node("all").addEventListener("toggle", showAll);
node("filter").addEventListener("input", showAll);
read();
