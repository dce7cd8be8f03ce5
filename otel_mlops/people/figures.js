// What is shown: from a reading, and from what its counters grew by, to tiles, tables and complaints.

const WINDOW_MS = 30_000;
const KEEP_MS = 300_000;
const SCORES = ["accuracy", "f1", "auc", "rmse", "mae", "r2", "bias"];
const FEATURES = new Map([["__prediction__", "its answers"]]);
const STATES = new Map([["ready", "good"], ["loading", "warn"], ["error", "bad"], ["unavailable", "bad"]]);
const COUNTED = {
  otel_mlops_dropped_total: "Dropped records", otel_mlops_overflow_total: "Records past a metric's cap of series",
  otel_mlops_export_failures_total: "Failed exports", otel_mlops_page_refused_total: "Clients sent away",
};

const growth = new Growth(
  ["api_requests_total", "api_request_duration_seconds_bucket", "errors_total", "predictions_total",
    "prediction_duration_seconds_bucket", "process_cpu_seconds_total"],
  WINDOW_MS,
);
const troubles = new Growth(
  [...Object.keys(COUNTED), "api_requests_total", "gpu_xid_errors_total", "gpu_throttle_seconds_total", "container_memory_events_total"],
  KEEP_MS,
);

const node = (id) => document.getElementById(id);
const tile = (title) => new Tile(node("tiles"), title, KEEP_MS);
const tiles = {
  requests: tile("Requests"), failed: tile("Failed requests"), latency: tile("Latency, p95"),
  predictions: tile("Predictions"), predicting: tile("Prediction latency, p95"), drift: tile("Drift"),
  quality: tile("Quality"), gpu: tile("GPU"), cpu: tile("CPU"), memory: tile("Memory"), workers: tile("Workers"),
};
/** A table in one of the page's two columns; its own columns are named with a `#` in front where they are numbers. */
const table = (place, title, columns, options) =>
  new Table(node(place), title, columns.map((name) => ({ name: name.replace("#", ""), n: name[0] === "#" })), options);
const tables = {
  models: table("work", "Models", ["Model", "Status", "#Rate", "#Today", "#p50", "#p95", "#p99", "#Errors"], { wide: true }),
  endpoints: table("work", "Endpoints", ["Endpoint", "#Rate", "#Failed", "#p50", "#p95", "#p99"], { wide: true }),
  errors: table("work", "Errors", ["Error", "#Rate", "#In all"]),
  drift: table("work", "Features", ["Feature", "#Drift", "#Threshold", "State"], { wide: true }),
  quality: table("work", "Scores", ["Score", "#Value", "#95 % interval", "#Samples"], { most: 20, wide: true }),
  gpus: table("place", "GPUs", ["GPU", "#Busy", "#Memory", "#Temperature", "#Power"], { most: 16, wide: true }),
  components: table("place", "Components", ["Component", "Health"], { most: 20 }),
  workers: table("place", "Processes", ["Worker", "#CPU", "#Memory", "#Threads", "#Files", "#Age"], { most: 32, wide: true }),
  machine: table("place", "Machine", ["What", "#Now"], { most: 30 }),
  itself: table("place", "Telemetry", ["What", "#Now"], { most: 40 }),
};

const modelOf = ({ model_name, model_version }) => [model_name, model_version].filter(Boolean).join(" ");
const isFailed = ({ status_code = "" }) => status_code[0] === "5";
const sum = (list) => list.reduce((all, each) => all + each.value, 0);
const descending = (by) => (one, other) => (by(other) || 0) - (by(one) || 0);
const quantiles = (buckets) => [0.5, 0.95, 0.99].map((q) => quantile(q, buckets));
const perSecond = (value) => (growth.seconds ? value / growth.seconds : undefined);
const of = (reading, names) => names.flatMap((name) => series(reading, name));

/** A counter: its rate, and until there is one its total. */
function counted(now, grown, name) {
  const all = total(now, name);
  const value = perSecond(total(grown, name) ?? 0);
  if (all === undefined) return {};
  return value === undefined ? { figure: plain(all), detail: "in all" } : { figure: rate(value), value };
}

/** A duration's quantiles: of the window, and until there is one of all time. */
function timed(now, grown, name) {
  const all = series(now, name);
  if (!all.length) return {};
  const [p50, p95, p99] = quantiles(growth.seconds ? series(grown, name) : all);
  const detail = p95 ? `p50 ${latency(p50)}, p99 ${latency(p99)}` : `since the start ${latency(quantile(0.95, all))}`;
  return { figure: latency(p95), detail, value: growth.seconds ? p95?.value : undefined };
}

function failures(now, grown) {
  const reading = growth.seconds ? grown : now;
  const bad = total(reading, "api_requests_total", isFailed) ?? 0;
  const share = bad / total(reading, "api_requests_total");
  const raised = perSecond(total(grown, "errors_total") ?? 0);
  if (!now.has("api_requests_total")) return {};
  const detail = raised === undefined ? `${plain(bad)} in all` : `errors: ${rate(raised)}`;
  return { figure: percent(share), value: growth.seconds ? share : undefined, detail, mark: bad ? "bad" : "" };
}

function drifted(now) {
  const [scores, judged] = [series(now, "model_drift_score"), series(now, "model_drift_detected")];
  if (!judged.length) return scores.length ? { figure: plain(highest(scores)), detail: "the highest score", value: highest(scores) } : {};
  const value = judged.filter((each) => each.value === 1).length;
  return { figure: plain(value), value, detail: `of ${plain(judged.length)} features`, mark: value ? "warn" : "" };
}

const scoresOf = (now) => SCORES.flatMap((score) => series(now, `model_${score}_score`).map((each) => ({ score, ...each })));

function quality(now) {
  const found = scoresOf(now);
  const { score, labels, value } = found.find((each) => each.labels.dataset === "live") ?? found[0] ?? {};
  if (!score) return {};
  const share = score === "accuracy" ? { figure: percent(value), most: 1 } : { figure: plain(value) };
  return { value, detail: `${score} of ${modelOf(labels)}, ${labels.dataset}`, ...share };
}

function used(share, detail) {
  return share === undefined ? {} : { figure: percent(share), value: share, most: 1, detail };
}

function showTiles(now, grown, at, gapMs) {
  const gpus = series(now, "gpu_utilization_percent").filter((each) => Number.isFinite(each.value));
  const today = total(now, "daily_predictions_total");
  const running = total(now, "api_requests_in_progress");
  const cpu = value(now, "system_cpu_usage_percent");
  const [memory, memories] = [value(now, "system_memory_usage_bytes"), value(now, "system_memory_total_bytes")];
  const [workers, cpus] = [value(now, "otel_mlops_workers"), total(grown, "process_cpu_seconds_total") ?? 0];
  const shown = {
    requests: { ...(running === undefined ? {} : { detail: `${plain(running)} in progress` }), ...counted(now, grown, "api_requests_total") },
    failed: failures(now, grown),
    latency: timed(now, grown, "api_request_duration_seconds_bucket"),
    predictions: { ...counted(now, grown, "predictions_total"), ...(today === undefined ? {} : { detail: `${plain(today)} today (UTC)` }) },
    predicting: timed(now, grown, "prediction_duration_seconds_bucket"),
    drift: drifted(now),
    quality: quality(now),
    gpu: gpus.length ? used(sum(gpus) / gpus.length / 100, `mean of ${gpus.length}`) : {},
    cpu: cpu === undefined ? {} : used(cpu / 100, `load ${plain(value(now, "system_cpu_load_1m"))}`),
    memory: memories ? used(memory / memories, ofMost(memory, memories)) : {},
    workers: { figure: workers && plain(workers), value: workers, detail: growth.seconds ? `${percent(perSecond(cpus))} of a CPU` : "" },
  };
  for (const [name, each] of Object.entries(tiles)) each.show({ at, gapMs, ...shown[name] });
}

function showModels(now, grown) {
  const known = of(now, ["model_info", "model_status", "predictions_total", "daily_predictions_total"]);
  tables.models.show([...grouped(known, (each) => modelOf(each.labels))], ([name]) => {
    const is = (labels) => modelOf(labels) === name;
    const state = series(now, "model_status", is).find((each) => each.value === 1)?.labels.model_status;
    const own = ["p50", "p95", "p99"].map((each) => value(now, `prediction_latency_${each}_seconds`, is));
    const lately = quantiles(series(grown, "prediction_duration_seconds_bucket", is));
    return [
      name || "a model", { text: [state, series(now, "model_info", is)[0]?.labels.stage].filter(Boolean).join(", ") || NONE, mark: STATES.get(state) },
      rate(perSecond(total(grown, "predictions_total", is) ?? 0)), plain(total(now, "daily_predictions_total", is)),
      ...lately.map((found, i) => (found ? latency(found) : duration(own[i]))), plain(total(now, "prediction_errors_total", is) ?? 0),
    ];
  });
}

function showEndpoints(now, grown) {
  const reading = growth.seconds ? grown : now;
  const amount = (count) => (growth.seconds ? rate(perSecond(count)) : plain(count));
  const name = ({ labels }) => `${labels.method ?? ""} ${labels.endpoint ?? ""}`;
  const buckets = grouped(series(reading, "api_request_duration_seconds_bucket"), name);
  const counts = [...grouped(series(reading, "api_requests_total"), name)].sort(descending(([, list]) => sum(list)));
  tables.endpoints.show(counts, ([endpoint, list]) => {
    const share = sum(list.filter((each) => isFailed(each.labels))) / sum(list);
    const failed = { text: percent(share), mark: share > 0 ? "bad" : "" };
    return [endpoint, amount(sum(list)), failed, ...quantiles(buckets.get(endpoint) ?? []).map(latency)];
  });
  const lately = new Map(series(grown, "errors_total").map((each) => [each.key, each.value]));
  const errors = [...series(now, "errors_total")].sort(descending((each) => (lately.get(each.key) ?? 0) * 1e9 + each.value));
  tables.errors.show(errors, ({ key, labels, value }) =>
    [`${labels.error_type} at ${labels.endpoint}`, rate(perSecond(lately.get(key) ?? 0)), plain(value)]);
}

function showScores(now) {
  const by = (name) => new Map(series(now, name).map((each) => [`${modelOf(each.labels)}: ${FEATURES.get(each.labels.feature) ?? each.labels.feature}`, each.value]));
  const [thresholds, states] = [by("model_drift_threshold"), by("model_drift_detected")];
  const features = [...by("model_drift_score")].map(([name, score]) => ({ name, score, threshold: thresholds.get(name), state: states.get(name) }));
  features.sort(descending((each) => (each.state === 1 ? 1e9 : 0) + each.score / (each.threshold || 1)));
  tables.drift.show(features, ({ name, score, threshold, state }) => [
    name, { text: plain(score), bar: threshold && bar(score / threshold / 2, 0.5) }, plain(threshold),
    [{ text: "as in training", mark: "good" }, { text: "drifted", mark: "warn" }][state] ?? NONE,
  ]);
  const further = { "expected accuracy": "model_estimated_accuracy_score", "share of truths that came": "ground_truth_coverage_ratio" };
  const others = Object.entries(further).flatMap(([score, name]) => series(now, name).map((each) => ({ score, ...each })));
  tables.quality.show([...scoresOf(now), ...others], ({ score, labels, value: found }) => {
    const bound = (which) => value(now, "model_score_bound", { ...labels, score, bound: which });
    const interval = bound("lower") === undefined ? NONE : `${plain(bound("lower"))} to ${plain(bound("upper"))}`;
    const of = [modelOf(labels), labels.dataset].filter(Boolean).join(", ");
    const samples = labels.dataset && value(now, "model_performance_samples", labels);
    return [`${score} of ${of}`, plain(found), interval, plain(samples)];
  });
}

const share = (used, most) => ({ text: ofMost(used, most || undefined), bar: most && bar(used / most) });

function showMachine(now, grown, at) {
  const gpus = grouped(of(now, ["gpu_up", "gpu_utilization_percent", "gpu_memory_used_bytes"]), (each) => each.labels.gpu_id);
  tables.gpus.show([...gpus], ([gpu_id, [{ labels }]]) => {
    const [busy, memory, memories, temperature, power, limit] = ["utilization_percent", "memory_used_bytes", "memory_total_bytes",
      "temperature_celsius", "power_usage_watts", "power_limit_watts"].map((name) => value(now, `gpu_${name}`, { gpu_id }));
    return [`${gpu_id} ${labels.gpu_name ?? ""}`, { text: percent(busy / 100), bar: busy !== undefined && bar(busy / 100) },
      share(memory, memories), unit(temperature, "°C"), ofMost(power, limit, (watts) => unit(watts, "W"))];
  });
  const components = series(now, "api_health_status").sort(descending(({ value }) => -value));
  tables.components.show(components, ({ labels, value }) =>
    [labels.component, value === 1 ? { text: "healthy", mark: "good" } : { text: "not healthy", mark: "bad" }]);
  const workers = grouped(of(now, ["process_resident_memory_bytes", "process_threads"]), (each) => each.labels.worker);
  tables.workers.show([...workers.keys()], (worker) => {
    const [memory, threads, files, most, began] = ["resident_memory_bytes", "threads", "open_fds", "max_fds", "start_time_seconds"]
      .map((name) => value(now, `process_${name}`, { worker }));
    const cpu = perSecond(total(grown, "process_cpu_seconds_total", { worker }) ?? 0);
    return [worker, percent(cpu), bytes(memory), plain(threads), ofMost(files, most, plain), duration(at / 1000 - began)];
  });
  const rows = [1, 5, 15].map((minutes) => [`Load over ${minutes} min`, plain(value(now, `system_cpu_load_${minutes}m`))]);
  const each = (name, what, show) => series(now, name).slice(0, 10).forEach(({ labels, value }) => rows.push([`${what} ${Object.values(labels)[0] ?? ""}`, show(value, labels)]));
  each("system_pressure_ratio", "Time spent waiting for", percent);
  each("system_disk_usage_bytes", "Disk at", (taken, labels) => share(taken, value(now, "system_disk_total_bytes", labels)));
  each("system_swap_usage_bytes", "Swap", (taken) => share(taken, value(now, "system_swap_total_bytes")));
  each("container_cpu_utilization_ratio", "CPU of the container", percent);
  each("container_memory_working_set_bytes", "Memory of the container", (taken) => share(taken, value(now, "container_memory_limit_bytes")));
  each("hardware_temperature_celsius", "Temperature of", (value) => unit(value, "°C"));
  tables.machine.show(rows.filter(([, shown]) => shown !== NONE), (row) => row);
}

function showItself(now) {
  const rows = series(now, "otel_mlops_source_up").map(({ labels, value: up }) => [`Source ${labels.source}`, up === 1
    ? { text: `read ${duration(value(now, "otel_mlops_source_age_seconds", labels))} ago`, mark: "good" } : { text: "cannot be read", mark: "bad" }]);
  for (const [name, what] of Object.entries(COUNTED)) {
    for (const { labels, value } of series(now, name)) if (value > 0) rows.push([`${what}: ${Object.values(labels).join(" ")}`, plain(value)]);
  }
  rows.push(["Memory of the series", bytes(total(now, "otel_mlops_ledger_size_bytes"))]);
  const made = total(now, "otel_mlops_page_duration_seconds_sum") / total(now, "otel_mlops_page_duration_seconds_count");
  rows.push(["Time to make the metrics", duration(made)], ["Version", value(now, "otel_mlops_build_info") && series(now, "otel_mlops_build_info")[0].labels.version]);
  tables.itself.show(rows.filter(([, text]) => text && text !== NONE), (row) => row);
}

/** What somebody should look at, the worst first; `lately` is what went wrong in the last minutes. */
function complaints(now, lately) {
  const found = [];
  const look = (mark, reading, name, is, text, fits = () => true) => {
    for (const { labels, value } of series(reading, name, fits)) {
      const facts = { ...labels, model: modelOf(labels), value: plain(value) };
      if (is(value)) found.push({ mark, text: text.replace(/\{(\w+)\}/g, (_, key) => facts[key] ?? NONE) });
    }
  };
  const [isOn, isOff, isMore] = [(value) => value === 1, (value) => value < 1, (value) => value > 0];
  const isState = (which) => ({ model_status }) => STATES.get(model_status) === which;
  const failing = (total(lately, "api_requests_total", isFailed) ?? 0) / total(lately, "api_requests_total");
  if (failing >= 0.01) found.push({ mark: failing < 0.05 ? "warn" : "bad", text: `${percent(failing)} of the requests fail` });
  look("bad", now, "api_health_status", isOff, "Component {component} is not healthy");
  look("bad", now, "model_status", isOn, "Model {model}: {model_status}", isState("bad"));
  look("bad", now, "gpu_up", isOff, "GPU {gpu_id} does not answer");
  look("bad", now, "gpu_recovery_action", isMore, "GPU {gpu_id} needs a recovery, action {value}");
  look("bad", lately, "gpu_xid_errors_total", isMore, "GPU {gpu_id} reported XID {xid}");
  look("bad", lately, "container_memory_events_total", isMore, "The container ran out of memory", { event: "oom_kill" });
  look("warn", now, "model_drift_detected", isOn, "Feature {feature} of {model} has drifted");
  look("warn", now, "model_status", isOn, "Model {model} is loading", isState("warn"));
  look("warn", lately, "gpu_throttle_seconds_total", isMore, "GPU {gpu_id} was slowed down for {value} s: {reason}", ({ reason }) => /^hw_|thermal/.test(reason));
  look("warn", now, "otel_mlops_source_up", isOff, "Source {source} cannot be read: its numbers are missing");
  look("warn", now, "otel_mlops_ledger_up", isOff, "Numbers of worker {worker} are not in shared memory: some may be missing");
  look("warn", now, "otel_mlops_page_config_up", isOff, "The web.config.yml is wrong; what was in force before still is");
  look("warn", now, "otel_mlops_overflow_total", isMore, "{metric} has reached its cap of series: {value} records went past it");
  look("warn", lately, "otel_mlops_dropped_total", isMore, "{value} records were dropped: {reason}");
  look("warn", lately, "otel_mlops_export_failures_total", isMore, "{value} exports of {signal} failed");
  look("warn", lately, "otel_mlops_page_refused_total", isMore, "{value} clients of this port were sent away: {cause}", ({ cause }) => /busy|rate/.test(cause));
  return found;
}
