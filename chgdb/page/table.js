/** A table of any number of rows: only those in sight are in the page, pages of them are fetched. */

import { el, formula, getJson, number, spacegroup, unit } from "./http.js";

const PAGE = 200;
const PAGES_KEPT = 60;
const AT_ONCE = 2;

/** Browsers cannot draw taller elements (Firefox: 17.8 million pixels); beyond, scrolling is scaled. */
const TALLEST = 15e6;

const LABELS = {
  n_atoms: "atoms", n_electrons: "electrons", n_elements: "elements", spacegroup_symbol: "space group", spacegroup: "group number",
  youngs_modulus: "Young’s modulus", poisson_ratio: "Poisson ratio", debye_temperature: "Debye temperature",
};

/** The words for a column, over its values or beside a field. */
export function label(name) {
  const known = LABELS[name] ?? LABELS[name.replace(/^predicted_/, "")];
  const text = known ?? name.replaceAll("_", " ").replace("nmae", "NMAE");
  return name.startsWith("predicted_") && known ? `predicted ${text}` : text;
}

const WIDTHS = { id: 114, formula: 106, spacegroup_symbol: 90, crystal_system: 112, n_atoms: 56, n_elements: 76 };

function width(column) {
  if (column.name in WIDTHS) return WIDTHS[column.name];
  if (column.type === "text") return 150;
  const text = label(column.name);
  const twoLines = text.includes(" ") ? text.length / 2 + 1 : text.length;
  const longest = Math.max(twoLines, ...text.split(" ").map((word) => word.length));
  return Math.max(70, 16 + 7 * Math.ceil(longest));
}

const isNumber = (column) => column.type === "integer" || column.type === "real";

/** Filters, columns and order, as GET /api/materials reads them. */
function question(filters, names, sort) {
  const query = new URLSearchParams(filters);
  query.set("columns", [...new Set([...names, "id", "source"])].join(","));
  if (sort) query.set("sort", sort);
  return query;
}

function pageUrl(query, page) {
  return `/api/materials?${query}&offset=${page * PAGE}&limit=${PAGE}`;
}

const early = new Map();

/** Asks for the first rows before there is a table; `Table.load` of the same takes them. */
export function prepare(filters, names, sort, at) {
  const url = pageUrl(question(filters, names, sort), Math.floor(at / PAGE));
  const answer = getJson(url);
  answer.catch(() => {});
  early.set(url, answer);
}

/**
 * The rows that fit a search.
 *
 * `on.open(id)`, `on.sort(sort)` and `on.move()` are called when a row is opened, a header is
 * clicked, and the position or the selected row changed; `on.fail(error)` when a page of rows
 * cannot be had.
 */
export class Table {
  constructor(on) {
    this.on = on;
    this.total = 0;
    this.columns = [];
    this.selected = -1;
    this.pages = new Map();
    this.asked = new Map();
    this.query = "";
    this.rows = [];
    this.cols = el("colgroup");
    this.head = el("thead");
    this.body = el("tbody");
    this.grid = el(
      "table",
      { role: "grid", tabIndex: 0, "aria-label": "Materials", onkeydown: (event) => this.#key(event), onclick: (event) => this.#click(event) },
      this.cols, this.head, this.body,
    );
    this.pane = el("div", { class: "pane" }, this.grid);
    this.spacer = el("div", { class: "spacer" }, this.pane);
    this.element = el("div", { class: "scroller", tabIndex: -1, onscroll: () => this.#later() }, this.spacer);
    this.resized = new ResizeObserver(() => this.#layout());
    this.resized.observe(this.element);
  }

  close() {
    this.resized.disconnect();
    this.loading?.abort();
    this.asking?.abort();
    cancelAnimationFrame(this.frame);
  }

  /**
   * Shows other rows once they are here; the present ones stay until then.
   *
   * @param query filters as of GET /api/materials, without columns, offset and limit.
   * @param columns of /api/store, to show.
   * @param sort "-COLUMN", "COLUMN" or "".
   * @param place {at, selected}: the first row in sight and the selected one.
   */
  async load(query, columns, sort, { at = 0, selected = -1 } = {}) {
    if (this.loading !== this.asking) this.loading?.abort(); // the rows shown still need theirs
    const loading = new AbortController();
    this.loading = loading;
    const asked = question(query, columns.map((column) => column.name), sort);
    const first = Math.floor(at / PAGE);
    let page = await this.#fetch(asked, first, loading.signal);
    if (first > 0 && page.rows.length === 0) {
      at = 0;
      page = await this.#fetch(asked, 0, loading.signal);
    }
    if (loading !== this.loading) throw new DOMException("another search began", "AbortError");
    this.asking?.abort();
    this.asking = loading;
    this.query = asked;
    this.total = page.total;
    this.pages = new Map([[page.offset / PAGE, page.rows]]);
    this.asked = new Map();
    this.place = new Map(page.columns.map((name, i) => [name, i]));
    this.selected = Math.min(selected, this.total - 1);
    this.#headers(columns, sort);
    this.#layout();
    this.#goTo(at);
    return page.total;
  }

  /** The number of the first row in sight, a fraction where it is cut. */
  get at() {
    return this.#top() / this.rowHeight;
  }

  #fetch(asked, page, signal) {
    const url = pageUrl(asked, page);
    const answer = early.get(url) ?? getJson(url, { signal });
    early.clear();
    return answer;
  }

  #headers(columns, sort) {
    const same = columns.length === this.columns.length && columns.every((column, i) => column === this.columns[i]);
    if (!same) {
      this.columns = columns;
      const widths = columns.map(width);
      this.cols.replaceChildren(...widths.map((w) => el("col", { style: { width: `${w}px` } })));
      this.spacer.style.minWidth = `${widths.reduce((a, b) => a + b, 0)}px`;
      this.head.replaceChildren(el("tr", {}, columns.map((column) => this.#header(column))));
      this.rows = [];
      this.body.replaceChildren();
    }
    for (const [i, th] of [...this.head.rows[0].cells].entries()) {
      const name = columns[i].name;
      const order = sort === name ? "ascending" : sort === `-${name}` ? "descending" : "none";
      th.setAttribute("aria-sort", order);
    }
    this.sort = sort;
  }

  #header(column) {
    const sort = () => {
      const next = { [column.name]: `-${column.name}`, [`-${column.name}`]: "" }[this.sort] ?? column.name;
      this.on.sort(next);
    };
    const title = `${column.name}: ${column.description}`;
    return el(
      "th", { scope: "col", class: isNumber(column) ? "number" : "", title },
      el("button", { type: "button", onclick: sort }, label(column.name), el("small", {}, unit(column.unit))),
    );
  }

  /** Heights after a change of the window, the headers or the number of rows. */
  #layout() {
    const at = this.rowHeight ? this.at : 0;
    this.rowHeight = Number.parseFloat(getComputedStyle(this.element).getPropertyValue("--row")) || 28;
    this.view = Math.max(0, this.element.clientHeight - this.head.offsetHeight);
    const full = this.total * this.rowHeight;
    this.spacer.style.height = `${this.head.offsetHeight + Math.min(full, TALLEST)}px`;
    this.pane.style.height = `${this.element.clientHeight}px`;
    this.grid.setAttribute("aria-rowcount", this.total + 1);
    this.#goTo(at);
  }

  /** Pixels of rows above the first in sight, of all rows drawn at their height. */
  #top() {
    const [range, scrollable] = this.#ranges();
    return scrollable > 0 ? Math.min(1, this.element.scrollTop / scrollable) * range : 0;
  }

  #ranges() {
    const full = this.total * this.rowHeight;
    return [Math.max(0, full - this.view), Math.min(full, TALLEST) - this.view];
  }

  #goTo(at) {
    const [range, scrollable] = this.#ranges();
    this.element.scrollTop = range > 0 ? (at * this.rowHeight * scrollable) / range : 0;
    this.#draw();
  }

  #later() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => {
      this.#draw();
      this.on.move();
    });
  }

  #draw() {
    if (!this.columns.length) return;
    const top = this.#top();
    const first = Math.floor(top / this.rowHeight);
    const count = Math.min(this.total - first, Math.ceil(this.view / this.rowHeight) + 1);
    while (this.rows.length > count) this.rows.pop().tr.remove();
    while (this.rows.length < count) this.#addRow();
    const moved = first - (this.rows[0]?.index ?? 0);
    if (moved > 0 && moved < count) {
      const passed = this.rows.splice(0, moved);
      this.rows.push(...passed);
      this.body.append(...passed.map((row) => row.tr));
    } else if (moved < 0 && -moved < count) {
      const passed = this.rows.splice(moved);
      this.rows.unshift(...passed);
      this.body.prepend(...passed.map((row) => row.tr));
    }
    for (const [i, row] of this.rows.entries()) this.#fill(row, first + i);
    this.body.style.transform = `translateY(${first * this.rowHeight - top}px)`;
    this.#mark();
    this.#need(first, first + count - 1);
  }

  #addRow() {
    const cells = this.columns.map((column) => el("td", { class: isNumber(column) ? "number" : "" }));
    const tr = el("tr", {}, cells);
    this.rows.push({ tr, cells, index: -1, values: null });
    this.body.append(tr);
  }

  #values(index) {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  }

  #fill(row, index) {
    const values = this.#values(index);
    if (row.index === index && row.values === values) return;
    row.index = index;
    row.values = values;
    row.tr.id = `row-${index}`;
    row.tr.setAttribute("aria-rowindex", index + 2);
    row.tr.classList.toggle("waiting", !values);
    for (const [i, column] of this.columns.entries()) {
      const value = values?.[this.place.get(column.name)];
      const cell = row.cells[i];
      cell.replaceChildren(...(values ? this.#cell(column, value, values) : []));
      if (column.type === "text") cell.title = value ?? "";
    }
  }

  #cell(column, value, values) {
    if (value === null || value === undefined) return [el("span", { class: "none" }, "–")];
    if (column.name === "id") {
      const source = values[this.place.get("source")];
      const mark = source && el("span", { class: "density", title: `has a charge density (${source})` });
      return [el("a", { href: `#/material/${encodeURIComponent(value)}`, tabIndex: -1 }, value), ...(mark ? [mark] : [])];
    }
    if (column.name === "formula" || column.name === "reduced_formula") return formula(value);
    if (column.name === "spacegroup_symbol") return spacegroup(value);
    if (column.type === "boolean") return [value ? "yes" : "no"];
    return [isNumber(column) ? number(value, column) : String(value)];
  }

  #mark() {
    for (const row of this.rows) row.tr.setAttribute("aria-selected", row.index === this.selected);
    const seen = this.rows.some((row) => row.index === this.selected);
    if (seen) this.grid.setAttribute("aria-activedescendant", `row-${this.selected}`);
    else this.grid.removeAttribute("aria-activedescendant");
  }

  /** Fetches the pages in sight, then those beside them, a few at a time. */
  #need(first, last) {
    if (this.total === 0) return;
    const [from, to] = [Math.floor(first / PAGE), Math.floor(last / PAGE)];
    for (const page of new Set([from, to, to + 1, from - 1])) {
      if (this.asked.size >= AT_ONCE) return;
      if (page < 0 || page * PAGE >= this.total || this.pages.has(page) || this.asked.has(page)) continue;
      this.#ask(page);
    }
  }

  async #ask(page) {
    const { asked, asking } = this;
    asked.set(page, true);
    try {
      const { rows } = await this.#fetch(this.query, page, asking.signal);
      if (asked !== this.asked) return;
      this.pages.set(page, rows);
      if (this.pages.size > PAGES_KEPT) this.pages.delete(this.pages.keys().next().value);
      asked.delete(page);
      this.#draw();
    } catch (error) {
      asked.delete(page);
      if (error.name !== "AbortError") this.on.fail(error);
    }
  }

  #click(event) {
    const index = this.rows.findIndex((row) => row.tr.contains(event.target));
    if (index < 0 || event.ctrlKey || event.metaKey || event.shiftKey || getSelection().type === "Range") return;
    event.preventDefault();
    this.#select(this.rows[index].index);
    this.#open();
  }

  #open() {
    const values = this.#values(this.selected);
    if (values) this.on.open(values[this.place.get("id")]);
  }

  #key(event) {
    if (event.target !== this.grid || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.view / this.rowHeight) - 1);
    const start = this.selected < 0 ? Math.ceil(this.at) - 1 : this.selected;
    const next = {
      ArrowDown: start + 1, ArrowUp: start - 1, PageDown: start + page, PageUp: start - page, Home: 0, End: this.total - 1,
    }[event.key];
    if (next !== undefined) this.#select(next);
    else if (event.key === "Enter") this.#open();
    else return;
    event.preventDefault();
  }

  /** Makes a row the selected one and brings it into sight. */
  #select(index) {
    if (this.total === 0) return;
    this.selected = Math.max(0, Math.min(this.total - 1, index));
    const rowsInSight = this.view / this.rowHeight;
    const at = this.at;
    if (this.selected < at) this.#goTo(this.selected);
    else if (this.selected + 1 > at + rowsInSight) this.#goTo(this.selected + 1 - rowsInSight);
    else this.#mark();
    this.on.move();
  }
}
