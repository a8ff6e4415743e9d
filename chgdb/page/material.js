/** The page of a material: what the store knows of it, and its density. */

import { el, errorPanel, getJson } from "./http.js";
import { densityPanels, downloads, facts, fillCard, head, loadStyle, neighbourTable, propertyTable, structureOf } from "./panels.js";

/** Shows the material `params.id`; returns what cleans up. */
export async function show(root, params, ctx) {
  loadStyle();
  const { id } = params;
  const base = `/api/materials/${encodeURIComponent(id)}`;
  const abort = new AbortController();
  const { signal } = abort;
  let panels = null;
  const cleanup = () => {
    abort.abort();
    panels?.destroy();
  };
  let found;
  try {
    found = await getJson(base, { signal });
  } catch (error) {
    root.append(errorPanel(error, el("p", {}, el("a", { href: ctx.list }, "To the list of materials"))));
    return cleanup;
  }
  const { record, properties, predicted, sources, errors } = found;
  const structure = structureOf(record);
  const density = sources.length > 0;
  document.title = `${record.formula} (${id}) · chgdb`;

  const pictures = el("div", { class: "pictures" });
  const similar = el("section", { class: "card" }, el("h2", {}, "Nearest materials by density"));
  root.classList.add("material");
  root.append(
    el("div", { class: "material-top" },
      head(record, el("b", {}, id), density ? el("span", { class: "badge good" }, `density: ${SOURCES[record.source] ?? record.source}`) : el("span", { class: "badge warn" }, "no density")),
      downloads(base, { density, structure: Boolean(structure) })),
    density ? "" : missing(record, structure),
    pictures,
    el("div", { class: "cards" },
      el("section", { class: "card" }, el("h2", {}, "Properties"), propertyTable(properties, predicted, ctx.store.columns)),
      el("div", { class: "card-column" }, el("section", { class: "card" }, el("h2", {}, "Structure and record"), facts(record, errors)), similar)));

  (async () => {
    if (structure) {
      panels = densityPanels(pictures, { record, structure, base, sources, errors });
      await panels.ready;
    }
    if (signal.aborted) return;
    await fillCard(similar, getJson(`${base}/similar?n=8`, { signal }), ({ rows }) => neighbourTable(rows.filter((row) => row.id !== id)));
    if (!signal.aborted) await panels?.showLate();
    root.dataset.complete = "true";
  })();
  return cleanup;
}

const SOURCES = { dft: "DFT", charge3net: "predicted by ChargE3Net" };

/** What a material without a density lacks, and how to give it to the store. */
function missing(record, structure) {
  return el("div", { class: "alert" },
    el("p", {}, structure ? "The store has the structure and properties of this material, but no charge density." : "The store has properties of this material, but neither its structure nor a charge density."),
    el("p", {}, "To add one, drop its CHGCAR on this page and store it with this id, or run ", el("code", {}, `chgdb add CHGCAR --id ${record.id}`), "."));
}
