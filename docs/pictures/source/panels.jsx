// A dashboard as Grafana draws it, from its JSON and what Prometheus has answered, with Grafana's own UI library.
//
// Grafana's panels lie in its server, but what they are made of is public: TimeSeries, BigValue, BarGauge, the table and
// the frame around each. What is done here is what the server's panels do between the two.

import {
  applyFieldOverrides,
  cacheFieldDisplayNames,
  createTheme,
  dateTime,
  FieldType,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
  standardFieldConfigEditorRegistry,
  standardTransformers,
  standardTransformersRegistry,
  ThemeContext,
  toDataFrame,
  transformDataFrame,
} from "@grafana/data";
import { BarGauge, BigValue, GlobalStyles, Icon, PanelChrome, TimeSeries, VizRepeater } from "@grafana/ui";
import { TableNG } from "@grafana/ui/unstable";
import { createRoot } from "react-dom/client";
import { firstValueFrom } from "rxjs";

const CELL = 30;
const GAP = 8;
const COLUMNS = 24;
const HEAD = 56;
const CONTROLS = 40;

window.__grafana_public_path__ = "public/";
const name = new URLSearchParams(location.search).get("dashboard");
const theme = createTheme({ colors: { mode: "dark" } });

// --- What Grafana registers when it starts -----------------------------------------------------------------------

function registerProperties(dashboard) {
  const names = ["unit", "min", "max", "decimals", "displayName", "noValue", "thresholds", "mappings", "color"];
  const custom = dashboard.panels.flatMap(({ fieldConfig: { defaults, overrides } = { defaults: {}, overrides: [] } }) => [
    ...Object.keys(defaults.custom ?? {}),
    ...overrides.flatMap(({ properties }) => properties.map(({ id }) => id.replace("custom.", ""))),
  ]).filter((path) => !names.includes(path));
  const property = (path, isCustom) => ({
    id: isCustom ? `custom.${path}` : path,
    path,
    isCustom,
    name: path,
    process: (value) => value,
    shouldApply: () => true,
  });
  standardFieldConfigEditorRegistry.setInit(() => [
    ...names.map((path) => property(path, false)),
    ...[...new Set([...custom, ...Object.keys(GRAPH)])].map((path) => property(path, true)),
  ]);
}

standardTransformersRegistry.setInit(() =>
  [standardTransformers.mergeTransformer, standardTransformers.organizeFieldsTransformer].map((each) => ({
    id: each.id,
    name: each.name,
    transformation: () => Promise.resolve(each),
  })),
);

// What the JSON leaves out is what Grafana's graph has by itself.
const GRAPH = {
  axisBorderShow: false,
  axisCenteredZero: false,
  axisColorMode: "text",
  axisLabel: "",
  axisPlacement: "auto",
  barWidthFactor: 0.6,
  gradientMode: "none",
  hideFrom: { legend: false, tooltip: false, viz: false },
  insertNulls: false,
  lineInterpolation: "linear",
  pointSize: 5,
  scaleDistribution: { type: "linear" },
};

// --- From Prometheus' answers to data frames -----------------------------------------------------------------------

// As Grafana's data source names a series.
function legend(target, labels) {
  if (target.legendFormat === "__auto") {
    return Object.keys(labels).length ? undefined : target.expr;
  }
  return target.legendFormat.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, label) => labels[label] ?? "");
}

function seriesOf(target, answer, times, step) {
  return answer.map(({ metric, value, values }) => {
    const found = new Map((values ?? [value]).map(([time, text]) => [Math.round(time * 1000), Number(text)]));
    const at = values ? times : [...found.keys()];
    return toDataFrame({
      refId: target.refId,
      fields: [
        { name: "Time", type: FieldType.time, values: at, config: { interval: step * 1000 } },
        {
          name: "Value",
          type: FieldType.number,
          labels: metric,
          values: at.map((time) => found.get(time) ?? null),
          config: { displayNameFromDS: legend(target, metric) },
        },
      ],
    });
  });
}

function tableOf(target, answer, isAlone) {
  const labels = [...new Set(answer.flatMap(({ metric }) => Object.keys(metric)))].sort();
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: "Time", type: FieldType.time, values: answer.map(({ value }) => value[0] * 1000) },
      ...labels.map((label) => ({
        name: label,
        type: FieldType.string,
        config: { filterable: true },
        values: answer.map(({ metric }) => metric[label] ?? ""),
      })),
      {
        name: isAlone ? "Value" : `Value #${target.refId}`,
        type: FieldType.number,
        values: answer.map(({ value }) => Number(value[1])),
      },
    ],
  });
}

async function framesOf(panel, asked) {
  const answers = panel.targets.map((target) => [target, asked.answers[panel.id][target.refId]]);
  const { step, times } = asked.answers[panel.id];
  const { defaults, overrides } = panel.fieldConfig;
  let frames;
  if (panel.type === "table") {
    const tables = answers.filter(([, answer]) => answer.length).map((each) => tableOf(...each, answers.length === 1));
    const context = { interpolate: (text) => text };
    frames = tables.length ? await firstValueFrom(transformDataFrame(panel.transformations, tables, context)) : [];
  } else {
    frames = answers.flatMap(([target, answer]) => seriesOf(target, answer, times, step));
  }
  const custom = panel.type === "timeseries" ? { ...GRAPH, ...defaults.custom } : defaults.custom;
  const made = applyFieldOverrides({
    data: frames,
    fieldConfig: { defaults: { ...defaults, custom }, overrides },
    replaceVariables: (text) => text,
    theme,
    timeZone: asked.timezone,
  });
  cacheFieldDisplayNames(made);
  return made;
}

// --- The panels ----------------------------------------------------------------------------------------------------

// A gap is drawn for what is no number.
function graphable(frames) {
  return frames.map((frame) => ({
    ...frame,
    fields: frame.fields.map((field) =>
      field.type === FieldType.number
        ? { ...field, values: field.values.map((value) => (Number.isFinite(value) ? value : null)) }
        : field,
    ),
  }));
}

function Graph({ frames, panel, asked, width, height }) {
  const range = { from: dateTime(asked.from * 1000), to: dateTime(asked.to * 1000) };
  return (
    <TimeSeries
      frames={graphable(frames)}
      structureRev={1}
      timeRange={{ ...range, raw: range }}
      timeZone={asked.timezone}
      width={width}
      height={height}
      legend={panel.options.legend}
      options={panel.options}
    />
  );
}

function values(frames, panel, asked) {
  return getFieldDisplayValues({
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: (text) => text,
    theme,
    data: frames,
    timeZone: asked.timezone,
  });
}

function Stat({ frames, panel, asked, width, height }) {
  const { colorMode, graphMode, justifyMode, textMode, wideLayout, orientation } = panel.options;
  return (
    <VizRepeater
      getValues={() => values(frames, panel, asked)}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, alignmentFactors, count, width, height }) => (
        <BigValue
          {...{ alignmentFactors, colorMode, count, graphMode, height, justifyMode, textMode, theme, width }}
          value={value.display}
          parentOrientation={orientation}
          disableWideLayout={!wideLayout}
        />
      )}
      {...{ height, orientation, width }}
      source={frames}
      itemSpacing={3}
      renderCounter={0}
      autoGrid
    />
  );
}

function Bars({ frames, panel, asked, width, height }) {
  const { displayMode, maxVizHeight, minVizHeight, minVizWidth, namePlacement, orientation } = panel.options;
  return (
    <VizRepeater
      getValues={() => values(frames, panel, asked)}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, alignmentFactors, width, height }) => (
        <BarGauge
          {...{ alignmentFactors, displayMode, height, namePlacement, orientation, theme, width }}
          value={value.display}
          field={value.field}
          display={value.view?.getFieldDisplayProcessor(value.colIndex)}
          text={panel.options.text}
          itemSpacing={10}
          lcdCellWidth={12}
          showUnfilled={panel.options.showUnfilled}
          valueDisplayMode={panel.options.valueMode}
        />
      )}
      {...{ height, maxVizHeight, minVizHeight, minVizWidth, orientation, width }}
      source={frames}
      itemSpacing={10}
      renderCounter={0}
    />
  );
}

function Rows({ frames, panel, width, height }) {
  const { cellHeight, sortBy } = panel.options;
  return (
    <TableNG
      {...{ cellHeight, height, sortBy, width }}
      data={frames[0]}
      structureRev={1}
      noHeader={false}
      enableVirtualization={false}
    />
  );
}

const KINDS = { bargauge: Bars, stat: Stat, table: Rows, timeseries: Graph };

function Nothing({ panel, height }) {
  const style = { alignItems: "center", display: "flex", height, justifyContent: "center" };
  return <div style={{ ...style, color: theme.colors.text.secondary }}>{panel.fieldConfig.defaults.noValue || "No data"}</div>;
}

function Panel({ panel, frames, asked, ...size }) {
  const isSingle = panel.type === "stat" || panel.type === "bargauge";
  const isEmpty = !isSingle && !frames.some((frame) => frame.length);
  const Kind = isEmpty ? Nothing : KINDS[panel.type];
  const padding = panel.type === "stat" || panel.type === "table" ? "none" : "md";
  return (
    <PanelChrome title={panel.title} description={panel.description} padding={padding} {...size}>
      {(width, height) => <Kind {...{ asked, frames, height, panel, width }} />}
    </PanelChrome>
  );
}

function Heading({ panel }) {
  const style = { alignItems: "center", color: theme.colors.text.primary, display: "flex", fontWeight: 500, gap: 6 };
  return (
    <div style={{ ...style, height: CELL }}>
      <Icon name={panel.collapsed ? "angle-right" : "angle-down"} />
      {panel.title}
      {panel.collapsed && (
        <span style={{ color: theme.colors.text.secondary, fontWeight: 400 }}>({panel.panels.length} panels)</span>
      )}
    </div>
  );
}

// --- The dashboard ---------------------------------------------------------------------------------------------------

function Choice({ label, value }) {
  const box = { border: `1px solid ${theme.colors.border.medium}`, lineHeight: "30px", padding: "0 8px" };
  return (
    <div style={{ display: "flex", fontSize: 12 }}>
      {label && <span style={{ ...box, background: theme.colors.background.secondary, fontWeight: 500 }}>{label}</span>}
      <span style={{ ...box, alignItems: "center", background: theme.components.input.background, display: "flex", gap: 16 }}>
        {value} <Icon name="angle-down" size="sm" />
      </span>
    </div>
  );
}

function Head({ dashboard, asked }) {
  const line = { alignItems: "center", display: "flex", gap: 8, height: CONTROLS };
  return (
    <>
      <div style={{ ...line, height: HEAD, justifyContent: "space-between" }}>
        <span style={{ fontSize: 18, fontWeight: 500 }}>{dashboard.title}</span>
        <Choice value={<><Icon name="clock-nine" size="sm" /> {asked.shown}</>} />
      </div>
      <div style={line}>
        {dashboard.templating.list.map(({ name, label }) => (
          <Choice key={name} label={label} value={name === "datasource" ? "Prometheus" : "All"} />
        ))}
      </div>
    </>
  );
}

function Dashboard({ dashboard, asked, frames }) {
  const side = 2 * GAP;
  const column = (window.innerWidth - 2 * side + GAP) / COLUMNS;
  const top = HEAD + CONTROLS + GAP;
  const line = CELL + GAP;
  const bottom = Math.max(...dashboard.panels.map(({ gridPos: { y, h } }) => y + h));
  return (
    <div id="dashboard" style={{ height: top + bottom * line + GAP, padding: `0 ${side}px`, position: "relative" }}>
      <Head {...{ asked, dashboard }} />
      {dashboard.panels.map((panel) => {
        const { x, y, w, h } = panel.gridPos;
        const size = { height: h * line - GAP, width: w * column - GAP };
        return (
          <div key={panel.id} style={{ left: side + x * column, position: "absolute", top: top + y * line, ...size }}>
            {panel.type === "row" ? <Heading panel={panel} /> : <Panel {...{ asked, panel, ...size }} frames={frames[panel.id]} />}
          </div>
        );
      })}
    </div>
  );
}

const { dashboard, asked } = (await (await fetch("data.json")).json())[name];
registerProperties(dashboard);
const drawn = dashboard.panels.filter(({ type }) => type !== "row");
const frames = Object.fromEntries(
  await Promise.all(drawn.map(async (panel) => [panel.id, await framesOf(panel, asked)])),
);
// The graphs measure their texts before they draw them.
await Promise.all(["400", "500"].map((weight) => document.fonts.load(`${weight} 14px Inter`)));
createRoot(document.getElementById("root")).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <Dashboard {...{ asked, dashboard, frames }} />
  </ThemeContext.Provider>,
);
