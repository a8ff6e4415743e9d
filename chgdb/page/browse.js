/** The list of materials: search, filters, table, distributions, and the same on the command line. */

import { debounced, el, getJson, unit } from "./http.js";
import { completing } from "./complete.js";
import { Histograms, bounds } from "./histograms.js";
import { Table, label, prepare as prepareRows } from "./table.js";

const COLUMNS = [
  "id", "formula", "spacegroup_symbol", "crystal_system", "n_atoms", "bulk_modulus", "shear_modulus",
  "youngs_modulus", "debye_temperature", "formation_energy", "band_gap",
];
const EXAMPLES = [
  "bulk_modulus > 150 AND NOT is_metal",
  'elements HAS ALL "Ti", "O"',
  "shear_modulus / bulk_modulus < 0.3",
  "source IS KNOWN",
];
const TEXTS = {
  formula: ["formula", "TiO2"],
  elements: ["all of these elements", "Ti,O"],
  exclude: ["none of these elements", "Pb,Cd"],
  chemsys: ["exactly these elements", "Ti-O"],
  nelements: ["number of elements", "2 or 2:3"],
  spacegroup: ["space group", "227 or Fd-3m"],
};
const FILTERS = ["where", ...Object.keys(TEXTS), "crystal_system", "source"];
const WAIT = 200;
const many = (n) => n.toLocaleString("en");

/** Where the list was left, for links to it; Back finds the same in the history. */
let left = { hash: "", state: null };

/** What the query of a hash asks for: filters and sort, ranges, and the columns to show. */
function asked(query) {
  return {
    state: new Map([...FILTERS, "sort"].map((name) => [name, query.get(name) ?? ""])),
    ranges: new Map(query.getAll("range").map((text) => text.split(/=(.*)/s).slice(0, 2))),
    shown: query.get("columns")?.split(",") ?? COLUMNS,
  };
}

/** Filters as /api/materials and /api/distributions read them, and as a hash keeps them. */
function filtersOf({ state, ranges }) {
  const query = new URLSearchParams();
  for (const name of FILTERS) {
    const value = state.get(name).trim();
    if (value) query.set(name, value);
  }
  for (const [column, range] of ranges) query.append("range", `${column}=${range}`);
  return query;
}

/** A word as a POSIX shell reads it. */
function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

class Browse {
  constructor(root, query, ctx) {
    this.ctx = ctx;
    this.columns = new Map(ctx.store.columns.map((column) => [column.name, column]));
    this.table = new Table({
      open: (id) => this.#open(id),
      sort: (sort) => this.change(() => this.#set("sort", sort)),
      move: debounced(() => this.#remember(), WAIT),
      fail: (error) => this.#fail(error),
    });
    this.histograms = new Histograms({
      range: (column, range) => this.change(() => this.#setRange(column, range)),
      edit: (column) => this.#edit(column),
      system: (name) => this.change(() => this.#set("crystal_system", name ?? "")),
    });
    Object.assign(this, asked(query));
    this.shown = this.shown.filter((name) => this.columns.has(name));
    this.typed = debounced(() => this.search(), WAIT);
    root.classList.add("browse");
    root.append(this.#searchBox(), this.#filters(), this.#columnList(), this.#body());
    this.#showState();
    const hash = this.#hash();
    const known = history.state?.list ?? (left.hash === hash ? left.state : null);
    this.search(known ?? {}).then(() => {
      if (known?.selected >= 0 && !this.closed) this.table.grid.focus({ preventScroll: true });
    });
  }

  close() {
    this.typed.cancel();
    this.table.close();
    this.asking?.abort();
    this.closed = true;
  }

  // ---- what is asked for -------------------------------------------------------------------

  #set(name, value) {
    this.state.set(name, value);
    return this;
  }

  #setRange(column, range) {
    if (range) this.ranges.set(column, range);
    else this.ranges.delete(column);
  }

  /** Changes what is asked for and asks. */
  change(how) {
    how();
    this.#showState();
    this.search();
  }

  #hash() {
    const query = filtersOf(this);
    if (this.state.get("sort")) query.set("sort", this.state.get("sort"));
    if (this.shown.join() !== COLUMNS.join()) query.set("columns", this.shown.join());
    const text = query.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
    return text ? `#/?${text}` : "#/";
  }

  async search(place = {}) {
    this.typed.cancel();
    this.asking?.abort();
    const asking = new AbortController();
    this.asking = asking;
    const query = filtersOf(this);
    const hash = this.#hash();
    this.results.setAttribute("aria-busy", "true");
    const columns = this.shown.map((name) => this.columns.get(name));
    const distributions = getJson(`/api/distributions?${query}`, { signal: asking.signal });
    distributions.catch(() => {});
    try {
      const total = await this.table.load(query, columns, this.state.get("sort"), place);
      if (this.closed || asking !== this.asking) return;
      this.#tell("");
      this.results.classList.remove("stale");
      this.#showCount(total);
      this.#showCommands();
      this.hash = hash;
      this.#remember();
      this.histograms.update(await distributions);
      this.#mark();
    } catch (error) {
      if (error.name === "AbortError" || this.closed || asking !== this.asking) return;
      this.#fail(error);
    } finally {
      if (asking === this.asking) this.results.removeAttribute("aria-busy");
    }
  }

  /** The address and, in the history, the position in the list. */
  #remember() {
    const elsewhere = !/^#?\/?(\?|$)/.test(location.hash);
    if (this.closed || this.hash === undefined || elsewhere) return;
    const state = { list: { at: this.table.at, selected: this.table.selected } };
    left = { hash: this.hash, state: state.list };
    history.replaceState(state, "", this.hash);
    this.ctx.listAt?.(this.hash);
  }

  #open(id) {
    this.#remember();
    this.ctx.navigate(`#/material/${encodeURIComponent(id)}`);
  }

  // ---- what is shown -----------------------------------------------------------------------

  #fail(error) {
    this.#tell(error.message);
    this.results.classList.add("stale");
    if (this.hash === undefined) this.count.replaceChildren(el("b", {}, "No list yet"));
  }

  #tell(message) {
    this.error.replaceChildren(...(message ? [...this.#meant(this.where.value.trim()), message] : []));
    this.error.title = message;
    this.where.setAttribute("aria-invalid", Boolean(message) && this.where.value.trim() !== "");
  }

  /** Ways out for who typed a bare formula or id where a condition stands. */
  #meant(word) {
    const offer = (text, how) => [el("button", { type: "button", class: "chip", onclick: () => this.change(how) }, `use ${text}`)];
    if (/^([A-Z][a-z]?[\d.]*)+$/.test(word)) {
      return offer(`the formula ${word}`, () => this.#set("where", "").#set("formula", word));
    }
    const condition = `id = '${word}'`;
    return /^[\w.+]+-[\w.+-]+$/.test(word) ? offer(condition, () => this.#set("where", condition)) : [];
  }

  #showCount(total) {
    const { records } = this.ctx.store;
    const text = total === records ? `${many(total)} materials` : `${many(total)} of ${many(records)} materials`;
    this.count.replaceChildren(el("b", {}, text));
    this.nothing.hidden = total > 0;
    if (records === 0) this.nothing.replaceChildren(el("p", {}, el("b", {}, "This store is empty.")), el("p", { class: "muted" }, "Drop a CHGCAR anywhere on the page to begin."));
    this.ctx.announce(text);
  }

  #showState() {
    for (const [name, input] of this.inputs) {
      if (input !== document.activeElement || input.value.trim() !== this.state.get(name).trim()) input.value = this.state.get(name);
    }
    for (const [column, [low, high]] of this.rangeInputs) {
      const [a, b] = bounds(this.ranges.get(column) ?? ":");
      if (low !== document.activeElement) low.value = Number.isFinite(a) ? a : "";
      if (high !== document.activeElement) high.value = Number.isFinite(b) ? b : "";
    }
    this.#showChips();
    this.#mark();
  }

  #mark() {
    this.histograms.mark(this.ranges, this.state.get("crystal_system").trim().toLowerCase());
  }

  #showChips() {
    const chip = (text, remove) => el("button", { type: "button", class: "chip", "aria-label": `Remove the filter ${text}`, onclick: () => this.change(remove) }, text, el("span", { "aria-hidden": "true" }, "×"));
    const chips = FILTERS.filter((name) => name !== "where" && this.state.get(name).trim()).map((name) => chip(`${label(name)}: ${this.state.get(name).trim()}`, () => this.#set(name, "")));
    for (const [column, range] of this.ranges) chips.push(chip(`${label(column)}: ${range}`, () => this.#setRange(column, null)));
    this.filtersButton.textContent = chips.length ? `Filters (${chips.length})` : "Filters";
    const clear = () => {
      for (const name of FILTERS) this.#set(name, "");
      this.ranges.clear();
    };
    if (chips.length || this.state.get("where").trim()) chips.push(el("button", { type: "button", class: "quiet small", onclick: () => this.change(clear) }, "clear all"));
    this.chips.replaceChildren(...chips);
  }

  #showCommands() {
    const options = [];
    const option = (name, value) => options.push(value.startsWith("-") ? quoted(`--${name}=${value}`) : `--${name} ${quoted(value)}`);
    for (const [name, value] of filtersOf(this)) {
      if (name !== "range") option(name.replaceAll("_", "-"), value);
    }
    for (const [column, range] of this.ranges) option(column.replaceAll("_", "-"), range);
    const store = this.ctx.store.place;
    const at = store ? [`--store ${quoted(String(store))}`] : [];
    const filters = [...options];
    if (this.state.get("sort")) option("sort", this.state.get("sort"));
    if (this.shown.join() !== COLUMNS.join()) option("columns", this.shown.join());
    this.commands.search.textContent = ["chgdb search", ...options, ...at].join(" ");
    this.commands.export.textContent = ["chgdb export materials.csv", ...filters, ...at].join(" ");
  }

  // ---- the parts ---------------------------------------------------------------------------

  #searchBox() {
    this.where = el("input", {
      id: "where", type: "search", class: "where", spellcheck: false, autocomplete: "off", autocapitalize: "off",
      placeholder: "bulk_modulus > 150 AND NOT is_metal", "aria-describedby": "where-error",
      oninput: () => this.#typedInto("where", this.where),
    });
    const completed = completing(this.where, this.ctx.store.columns);
    this.where.addEventListener("keydown", (event) => event.key === "Enter" && this.search());
    this.inputs = new Map([["where", this.where]]);
    this.error = el("p", { class: "error", id: "where-error", "aria-live": "polite" });
    const fold = (text, id) => el("button", {
      type: "button", "aria-expanded": "false", "aria-controls": id,
      onclick: (event) => this.#fold(event.currentTarget, id),
    }, text);
    this.filtersButton = fold("Filters", "filters");
    const examples = EXAMPLES.map((text) => el("button", { type: "button", class: "chip example", onclick: () => this.change(() => this.#set("where", text)) }, text));
    return el(
      "section", { class: "search", role: "search" },
      el("div", { class: "line" }, el("label", { for: "where", class: "unseen" }, "Search: a condition over the columns, in SQL or OPTIMADE"), completed, this.filtersButton, fold("Columns", "columns")),
      this.error,
      el("div", { class: "examples" }, el("span", { class: "muted small" }, "Try"), examples),
    );
  }

  #fold(button, id) {
    const panel = document.getElementById(id);
    panel.hidden = !panel.hidden;
    button.setAttribute("aria-expanded", !panel.hidden);
    if (!panel.hidden && id === "columns") this.#fillColumnList();
  }

  /** To the fields of a range. */
  #edit(column) {
    if (document.getElementById("filters").hidden) this.filtersButton.click();
    this.rangeInputs.get(column)[0].focus();
  }

  #typedInto(name, input) {
    this.#set(name, input.value);
    this.#showChips();
    this.typed();
  }

  #field(name, text, input) {
    input.id = `filter-${name}`;
    return el("div", { class: "field" }, el("label", { for: input.id }, text), input);
  }

  #filters() {
    const onkeydown = (event) => event.key === "Enter" && this.search();
    const fields = Object.entries(TEXTS).map(([name, [text, placeholder]]) => {
      const input = el("input", { type: "text", placeholder, spellcheck: false, autocomplete: "off", oninput: () => this.#typedInto(name, input), onkeydown });
      this.inputs.set(name, input);
      return this.#field(name, text, input);
    });
    const { crystal_systems, sources, ranges } = this.ctx.store;
    for (const [name, values] of [["crystal_system", crystal_systems], ["source", sources]]) {
      const input = el("select", { onchange: () => this.change(() => this.#set(name, input.value)) }, el("option", { value: "" }, "any"), values.map((value) => el("option", { value }, value)));
      this.inputs.set(name, input);
      fields.push(this.#field(name, name === "source" ? "density" : label(name), input));
    }
    this.rangeInputs = new Map();
    for (const column of ranges) {
      const name = `${label(column)}${unit(this.columns.get(column)?.unit) ? ` (${unit(this.columns.get(column).unit)})` : ""}`;
      const input = (end) => el("input", {
        type: "text", inputMode: "decimal", placeholder: end, autocomplete: "off", "aria-label": `${name}, ${end}`, onkeydown,
        oninput: () => {
          const [low, high] = this.rangeInputs.get(column).map((each) => each.value.trim());
          this.#setRange(column, low || high ? `${low}:${high}` : null);
          this.#showChips();
          this.typed();
        },
      });
      const pair = [input("from"), input("to")];
      this.rangeInputs.set(column, pair);
      fields.push(el("div", { class: "field", role: "group", "aria-label": name }, el("label", {}, name), el("div", { class: "pair" }, pair)));
    }
    return el("section", { class: "panel fold filters", id: "filters", "aria-label": "Filters", hidden: true }, fields);
  }

  #columnList() {
    this.columnItems = el("div", { class: "column-items" });
    const filter = el("input", { type: "search", placeholder: "find a column", "aria-label": "Find a column", oninput: () => {
      const words = filter.value.trim().toLowerCase();
      for (const item of this.columnItems.children) item.hidden = !item.textContent.toLowerCase().includes(words);
    } });
    const reset = el("button", { type: "button", onclick: () => this.#chooseColumns(COLUMNS) }, "Reset");
    return el(
      "section", { class: "panel fold columns", id: "columns", "aria-label": "Columns", hidden: true },
      el("div", { class: "row" }, filter, reset, el("span", { class: "muted small" }, "Tick a column to show it; click its name to use it in the search.")),
      this.columnItems,
    );
  }

  #chooseColumns(names) {
    this.shown = [...names];
    for (const [name, box] of this.boxes ?? []) box.checked = this.shown.includes(name);
    this.search({ at: this.table.at, selected: this.table.selected });
  }

  #fillColumnList() {
    if (this.boxes) return;
    this.boxes = new Map();
    const items = this.ctx.store.columns.map((column) => {
      const box = el("input", { type: "checkbox", checked: this.shown.includes(column.name), disabled: column.name === "id", "aria-label": `Show ${column.name}`, onchange: () => {
        const others = this.shown.filter((name) => name !== column.name);
        this.#chooseColumns(box.checked ? [...others, column.name] : others);
      } });
      this.boxes.set(column.name, box);
      const name = el("button", { type: "button", class: "quiet code", title: "Put it into the search", onclick: () => this.#insert(column.name) }, column.name);
      return el("div", { class: "column-item" }, box, name, el("span", { class: "muted small" }, [unit(column.unit), column.description].filter(Boolean).join(" · ")));
    });
    this.columnItems.replaceChildren(...items);
  }

  /** Writes a name where the cursor stands in the search. */
  #insert(name) {
    const { value, selectionStart, selectionEnd } = this.where;
    const before = value.slice(0, selectionStart);
    const text = `${/[\w)]$/.test(before) ? " " : ""}${name} `;
    this.where.focus();
    this.where.setRangeText(text, selectionStart, selectionEnd, "end");
    this.#set("where", this.where.value);
    this.#showChips();
  }

  #body() {
    this.count = el("span", { class: "found" }, "…");
    this.chips = el("span", { class: "chips" });
    this.nothing = el("div", { class: "nothing", hidden: true }, el("p", {}, el("b", {}, "No material fits all of this.")), el("p", { class: "muted" }, "Take a filter away or widen a range: a material whose value is not known fits no comparison with it."));
    this.results = el("section", { class: "results", "aria-label": "Materials" }, el("div", { class: "status" }, this.count, this.chips, el("span", { class: "legend muted small" }, el("i", { class: "density" }), "with a charge density")), el("div", { class: "frame" }, el("div", { class: "busy" }), this.table.element, this.nothing), this.#commandLines());
    return el("div", { class: "columns-of-page" }, this.histograms.element, this.results);
  }

  #commandLines() {
    this.commands = { search: el("code"), export: el("code") };
    const line = (name, title) => {
      const code = this.commands[name];
      const copy = el("button", { type: "button", class: "quiet small", "aria-label": `Copy the command: ${title}`, onclick: async () => {
        try {
          await navigator.clipboard.writeText(code.textContent);
          copy.textContent = "Copied";
          setTimeout(() => { copy.textContent = "Copy"; }, 1500);
        } catch {
          getSelection().selectAllChildren(code);
        }
      } }, "Copy");
      return el("div", { class: "command", title }, code, copy);
    };
    return el(
      "details", { class: "commands", open: matchMedia("(min-width: 900px)").matches },
      el("summary", { class: "muted small" }, "The same on the command line"),
      line("search", "this list in a terminal"),
      line("export", "this selection as a file: .csv, .json, .parquet, .extxyz, or a folder for a store of its own"),
    );
  }
}

/** Asks for the first rows while the store is still asked what it holds. */
export function prepare(params) {
  const query = asked(params.query);
  prepareRows(filtersOf(query), query.shown, query.state.get("sort"), history.state?.list?.at ?? 0);
}

/** Shows the list of materials that the hash's query asks for. */
export async function show(root, params, ctx) {
  const view = new Browse(root, params.query, ctx);
  return () => view.close();
}
