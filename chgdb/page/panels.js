/** What the pages of a material and of an upload have in common. */

import { el, errorPanel, formula, getBinary, number, spacegroup, svg, unit } from "./http.js";
import { sliceView } from "./slice.js";
import { crystalView } from "./viewer.js";

const [FEWEST, MOST] = [48, 128]; // points along the longest axis of a density in the crystal; the server gives no more
const CHGCAR_BYTES = 18; // per grid point: five numbers of 17 characters and a space in a line

/** Loads the style of these pages once. */
export function loadStyle() {
  if (document.getElementById("material-style")) return;
  document.head.append(el("link", { id: "material-style", rel: "stylesheet", href: "/page/material.css" }));
}

/** The structure of a record; null if it has none. */
export function structureOf(record) {
  if (!record.lattice || !record.species || !record.frac_coords) return null;
  return { lattice: record.lattice, species: record.species, fracCoords: record.frac_coords };
}

/** Formula, id, symmetry and source. */
export function head(record, ...badges) {
  const facts = [
    record.spacegroup && ["space group ", spacegroup(record.spacegroup_symbol ?? ""), ` (No. ${record.spacegroup})`],
    record.crystal_system,
    record.n_atoms && `${record.n_atoms} atom${record.n_atoms === 1 ? "" : "s"} in the cell`,
  ].filter(Boolean);
  return el("div", { class: "material-head" },
    el("h1", {}, formula(record.formula)),
    el("div", { class: "material-line" }, badges, facts.map((fact) => el("span", {}, fact))));
}

/** Buttons that download; those without a density or a structure say why they cannot. */
export function downloads(base, { density, structure }) {
  const files = [["CHGCAR", density, "density"], ["cube", density, "density"], ["cif", structure, "structure"], ["json", true, ""]];
  return el("div", { class: "row downloads", role: "group", "aria-label": "Downloads" }, files.map(([name, there, what]) => {
    const text = name.length === 3 || name === "json" ? name.toUpperCase() : name;
    return there
      ? el("a", { class: "button", href: `${base}/files/${name}`, download: "" }, text)
      : el("button", { type: "button", disabled: true, title: `the record has no ${what}` }, text);
  }), density ? null : el("span", { class: "small muted" }, structure ? "no density to download" : "no density, no structure to download"));
}

/**
 * Crystal and slices of a material or an upload.
 *
 * @returns {{destroy: Function, ready: Promise, showLate: Function}} `showLate` adds the latent,
 *   which the server needs seconds for, to the slices
 */
export function densityPanels(root, { record, structure, base, sources, errors }) {
  // no coarser than its own grid, up to MOST: on a coarser one, sharp cores ring through the cell
  const lengths = structure.lattice.map((row) => Math.hypot(...row));
  const stored = [record.grid_a, record.grid_b, record.grid_c];
  const densest = Math.max(...stored.map((n, axis) => n / lengths[axis]));
  const points = Math.min(Math.max(Math.ceil(densest * Math.max(...lengths)) || FEWEST, FEWEST), MOST);
  const fields = new Map();
  const abort = new AbortController();

  /** {grid, values} of a source, asked once. */
  function field(source) {
    if (!fields.has(source)) {
      const found = loadField(base, source, points, abort.signal);
      found.catch(() => fields.delete(source));
      fields.set(source, found);
    }
    return fields.get(source);
  }

  const crystal = el("section", { class: "panel", "aria-label": "Crystal" }, el("h2", {}, sources.length ? "Structure and charge density" : "Structure"));
  root.append(crystal);
  const view = crystalView(crystal, { structure, sources, stored, field });
  let slices = null;
  let closed = false;
  const late = sources.length > 1 ? ["latent"] : [];

  const ready = view.ready.then(() => {
    if (closed || !sources.length) return undefined;
    const panel = el("section", { class: "panel", "aria-label": "Slice" }, el("h2", {}, "Slice through a lattice plane"));
    root.append(panel);
    slices = sliceView(panel, { structure, base, sources, late, errors });
    return slices.ready;
  });
  return {
    ready,
    showLate: () => (closed ? undefined : slices?.show(late)),
    destroy() {
      closed = true;
      abort.abort();
      view.destroy();
      slices?.destroy();
    },
  };
}

async function loadField(base, source, points, signal) {
  const { buffer, headers } = await getBinary(`${base}/field?source=${source}&points=${points}`, { signal });
  const grid = headers.get("X-Chgdb-Grid").split(",").map(Number);
  const values = new Float32Array(buffer);
  if (values.length !== grid[0] * grid[1] * grid[2]) throw new Error("the server answered with another number of points");
  return { grid, values };
}

const FLAGS = {
  in_training: "In the training set: the model has seen the reference values of this material.",
  outside_domain: "Outside the training domain: unlike the materials that the model learned from, so the interval may be too narrow.",
  foreign: "Other pseudopotential: predicted without what sees the cores of the atoms.",
};

/** "bulk_modulus" as people write it. */
function words(name) {
  const text = name.replace(/_/g, " ").replace("youngs", "young's").replace(/ (clarke|cahill)$/, ", $1").replace(/^is gap/, "gap is").replace("poisson", "Poisson").replace(/(clarke|cahill|debye)/, (word) => word[0].toUpperCase() + word.slice(1));
  return text[0].toUpperCase() + text.slice(1);
}

/** Reference and predicted properties in one table. */
export function propertyTable(properties, predicted, columns) {
  const predictedNames = Object.keys(predicted ?? {}).filter((name) => `${name}_low` in predicted);
  const rows = columns.filter(({ name }) => name !== "split" && (name in properties || predictedNames.includes(name)));
  if (!rows.length) return el("p", { class: "muted" }, "No property of this material is known.");
  rows.sort((p, q) => Number(predictedNames.includes(q.name)) - Number(predictedNames.includes(p.name)));
  const some = predictedNames.length > 0;
  const known = Object.keys(properties).length > 0;
  const value = (found, column) => (typeof found === "boolean" ? (found ? "yes" : "no") : number(found, column));
  const table = el("table", { class: "values properties" },
    el("thead", {}, el("tr", {}, ["Property", known && "Reference", some && "Predicted", some && "90 % interval", "Unit"].filter(Boolean).map((title) =>
      el("th", { scope: "col", class: ["Reference", "Predicted"].includes(title) ? "number" : "" }, title)))),
    el("tbody", {}, rows.map((column) => {
      const { name } = column;
      const [low, high] = [predicted?.[`${name}_low`], predicted?.[`${name}_high`]];
      const reference = properties[name];
      const here = predictedNames.includes(name);
      return el("tr", { "data-property": name },
        el("th", { scope: "row", title: column.description }, words(name)),
        known && el("td", { class: "number" }, value(reference, column)),
        some && el("td", { class: "number" }, here ? number(predicted[name], column) : ""),
        some && el("td", { class: "interval" }, here ? [intervalBar(low, high, predicted[name], reference), el("span", {}, `${number(low, column)} to ${number(high, column)}`)] : ""),
        el("td", { class: "muted" }, unit(column.unit)));
    })));
  const notes = Object.keys(FLAGS).filter((flag) => predicted?.[flag]).map((flag) => el("p", { class: "small note" }, FLAGS[flag]));
  const model = predicted?.model ? el("p", { class: "small muted" }, `Predicted by ${predicted.model} from the density; the bar is the interval, │ the prediction${known ? ", ◆ the reference" : ""}.`) : null;
  return el("div", { class: "scroll" }, table, notes, model);
}

/** The interval, the prediction in it, and the reference, on a scale of their own. */
function intervalBar(low, high, middle, reference) {
  const known = [low, high, middle, reference].filter((x) => typeof x === "number");
  const [from, to] = [Math.min(...known), Math.max(...known)];
  const place = (x) => (6 + (88 * (x - from)) / (to - from || 1)).toFixed(2);
  const mark = typeof reference === "number" ? svg("path", { class: "bar-reference", d: `M${place(reference)} 2.5 l4 5.5 l-4 5.5 l-4 -5.5 z` }) : null;
  return svg("svg", { class: "interval-bar", viewBox: "0 0 100 16", width: 100, height: 16, "aria-hidden": "true" },
    svg("line", { class: "bar-axis", x1: 0, x2: 100, y1: 8, y2: 8 }),
    svg("rect", { class: "bar-interval", x: place(low), width: Math.max(place(high) - place(low), 1), y: 4.5, height: 7, rx: 2 }),
    svg("line", { class: "bar-middle", x1: place(middle), x2: place(middle), y1: 2.5, y2: 13.5 }), mark);
}

/** The nearest materials, each a link. */
export function neighbourTable(rows) {
  if (!rows.length) return el("p", { class: "muted" }, "No other material to compare with.");
  return el("div", { class: "scroll" }, el("table", { class: "values neighbours" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Material"), el("th", { scope: "col" }, "Formula"), el("th", { scope: "col", class: "number" }, "Distance"), el("th", { scope: "col", class: "number" }, "Å³/atom"), el("th", { scope: "col" }, ""))),
    el("tbody", {}, rows.map((row) => el("tr", {},
      el("td", {}, el("a", { href: `#/material/${encodeURIComponent(row.id)}` }, row.id)),
      el("td", {}, formula(row.formula)),
      el("td", { class: "number" }, row.distance.toFixed(3)),
      el("td", { class: "number" }, row.volume_per_atom?.toFixed(2) ?? "–"),
      el("td", {}, row.density ? el("span", { class: "badge good" }, "density") : ""))))));
}

/** Fills a card once a promise is kept, or says in it why not. */
export async function fillCard(card, promise, build) {
  try {
    card.append(build(await promise));
  } catch (error) {
    if (error.name !== "AbortError") card.append(errorPanel(error));
  }
}

/** A number of bytes for people. */
export function bytes(size) {
  if (size === null || size === undefined) return "–";
  const power = size < 1000 ? 0 : Math.min(3, Math.floor(Math.log10(size) / 3));
  return power ? `${Number((size / 1000 ** power).toPrecision(3))} ${["", "kB", "MB", "GB"][power]}` : `${size} bytes`;
}

/** a, b, c in A and alpha, beta, gamma in degrees. */
function cellParameters(lattice) {
  const lengths = lattice.map((row) => Math.hypot(...row));
  const angle = (p, q) => {
    const dot = lattice[p].reduce((sum, x, axis) => sum + x * lattice[q][axis], 0);
    return (Math.acos(Math.max(-1, Math.min(1, dot / (lengths[p] * lengths[q])))) * 180) / Math.PI;
  };
  return { lengths, angles: [angle(1, 2), angle(0, 2), angle(0, 1)] };
}

/**
 * Facts on structure and record, and the errors of what is stored.
 *
 * @param {object} record
 * @param {object} errors of payload and latent
 * @param {number} [fileBytes] true size of the file; without it the size of a CHGCAR is estimated
 */
export function facts(record, errors, fileBytes) {
  const entries = [];
  const add = (name, value) => value !== null && value !== undefined && entries.push([name, value]);
  if (record.lattice) {
    const { lengths, angles } = cellParameters(record.lattice);
    add("a, b, c", `${lengths.map((x) => x.toFixed(4)).join(", ")} Å`);
    add("α, β, γ", `${angles.map((x) => x.toFixed(2)).join(", ")}°`);
  }
  add("Volume", record.volume && `${record.volume.toFixed(3)} Å³`);
  add("Mass density", record.mass_density && `${record.mass_density.toFixed(3)} g/cm³`);
  add("Atoms", record.n_atoms);
  add("Electrons", record.n_electrons?.toFixed(4));
  add("Magnetization", typeof record.magnetization === "number" ? `${record.magnetization.toFixed(3).replace("-", "−")} ${unit("mu_B")}` : null);
  const grid = record.grid_a && [record.grid_a, record.grid_b, record.grid_c];
  add("Grid", grid && grid.join(" × "));
  add("Source", record.source);
  add("Source file", record.source_file);
  add("Added", fileBytes ? null : record.added?.slice(0, 10));
  const list = el("dl", { class: "facts" }, entries.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  if (!errors?.payload && !errors?.latent) return list;
  const size = grid && grid[0] * grid[1] * grid[2] * CHGCAR_BYTES;
  const stored = errors.payload?.bytes;
  const told = (value, digits = 3) => (typeof value === "number" ? (value === 0 ? "0" : Number(value.toPrecision(digits)).toString().replace(/-/g, "−")) : "–");
  const kinds = ["payload", "latent"].filter((kind) => errors[kind]);
  return [list,
    el("div", { class: "scroll" }, el("table", { class: "values" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Error against the source"), kinds.map((kind) => el("th", { scope: "col", class: "number" }, kind)))),
      el("tbody", {}, [["NMAE, %", "nmae"], ["largest, e/Å³", "max_error"], ["electrons", "electron_error"]].map(([name, key]) =>
        el("tr", {}, el("th", { scope: "row" }, name), kinds.map((kind) => el("td", { class: "number" }, told(errors[kind][key])))))))),
    stored && el("p", { class: "small muted sizes" }, `The payload takes ${bytes(stored)}; `,
      fileBytes ? `the file had ${bytes(fileBytes)}: ${ratio(fileBytes / stored)} times as much.`
        : `a CHGCAR on this grid about ${bytes(size)} (estimated: ${CHGCAR_BYTES} bytes per point).`)];
}

/** A ratio for people: three digits. */
export function ratio(x) {
  return Number(x.toPrecision(3)).toLocaleString("en");
}
