// What a dashboard of ours is made of, by the types that Grafana publishes. Followed by literals.

import type { Dashboard, DataQuery, FieldConfig, Panel } from "@grafana/schema";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as timeline from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type * as series from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// Enums by their values, as JSON has them.
type Json<T> = T extends string ? `${T}` : T extends (infer U)[] ? Json<U>[]
  : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
type Query = Json<DataQuery> & { expr: string; legendFormat: string };
// Nothing but colours, so that a series looks the same on every panel.
type Colour = { matcher: { id: "byName" | "byRegexp"; options: string };
  properties: [{ id: "color"; value: { mode: "fixed"; fixedColor: string } }] };
type Kind<Name, Options, Field> = Omit<Json<Panel>, "type" | "options" | "fieldConfig" | "targets"> & {
  type: Name; options: Json<Partial<Options>>; targets: Query[];
  fieldConfig: { overrides: Colour[]; defaults: Omit<Json<FieldConfig>, "custom"> & { custom?: Json<Partial<Field>> } };
};
type Any = Kind<"stat", stat.Options, {}> | Kind<"timeseries", series.Options, series.FieldConfig>
  | Kind<"state-timeline", timeline.Options, timeline.FieldConfig>;
type Ours = Omit<Json<Dashboard>, "panels"> & { panels: Any[] };

