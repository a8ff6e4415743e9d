/** How properties and crystal systems are distributed: all materials, and those selected. */

import { ticks } from "./colours.js";
import { el, svg, unit } from "./http.js";
import { label } from "./table.js";

const WIDTH = 272;
const HEIGHT = 46;
const AXIS = 16;

const many = (n) => n.toLocaleString("en");
const shown = (x) => String(x).replace("-", "−");

/** Bins `from` to `to` as a range filter, with no more digits than tell the bins apart. */
export function binRange(edges, from, to) {
  const digits = Math.max(0, Math.ceil(-Math.log10(edges[1] - edges[0])) + 1);
  const text = (edge) => String(Number(edge.toFixed(digits)));
  return `${text(edges[from])}:${text(edges[to + 1])}`;
}

/** Both ends of "LOW:HIGH", "LOW:", ":HIGH" or "VALUE"; one that is no number is infinite. */
export function bounds(range) {
  const [low, high = low] = range.split(":").map((part) => (part.trim() === "" ? NaN : Number(part)));
  return [Number.isNaN(low) ? -Infinity : low, Number.isNaN(high) ? Infinity : high];
}

function rangeText(range) {
  const [low, high] = bounds(range).map((x) => (Number.isFinite(x) ? shown(x) : ""));
  if (low && high) return low === high ? low : `${low} to ${high}`;
  return low ? `≥ ${low}` : `≤ ${high}`;
}

/** How many times as high a small selection is drawn, so that its shape can be seen. */
export function magnification(most, mostSelected) {
  const room = most / Math.max(1, mostSelected);
  const power = 10 ** Math.floor(Math.log10(Math.max(1, room)));
  const factor = [5, 2, 1].map((x) => x * power).find((x) => x <= room) ?? 1;
  return factor >= 5 ? factor : 1;
}

/**
 * One property; `pick(range)` is called with the bins that were clicked or dragged over, or null,
 * `edit()` to type a range.
 */
class Histogram {
  constructor(data, pick, edit) {
    this.column = data.column;
    this.unit = unit(data.unit);
    this.edges = data.edges;
    this.pick = pick;
    const n = data.all.length;
    const step = WIDTH / n;
    const bars = (kind) => data.all.map((_, i) => svg("rect", { class: kind, x: i * step, width: Math.max(0.5, step - 0.8), y: HEIGHT, height: 0 }));
    this.bars = { all: bars("all"), selected: bars("selected") };
    this.band = svg("rect", { class: "band", y: 0, height: HEIGHT, width: 0 });
    const low = data.edges[0];
    const high = data.edges[n];
    this.scale = (value) => (Math.max(0, Math.min(1, (value - low) / (high - low))) * WIDTH);
    const axis = ticks({ low, high }).map((value) => {
      const x = this.scale(value);
      const anchor = x < 10 ? "start" : x > WIDTH - 12 ? "end" : "middle";
      return [svg("line", { x1: x, x2: x, y1: HEIGHT, y2: HEIGHT + 3 }), svg("text", { x, y: HEIGHT + 14, "text-anchor": anchor }, shown(value))];
    });
    this.drawing = svg(
      "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + AXIS}`, role: "img" },
      this.band, this.bars.all, this.bars.selected, svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }), axis,
    );
    this.told = el("span", { class: "told" });
    this.magnified = el("span", { class: "magnified" });
    this.chip = el("button", { type: "button", class: "chip", hidden: true, onclick: () => this.pick(null) });
    const title = label(data.column);
    this.element = el(
      "figure", { class: "histogram", "data-column": data.column, title: data.description },
      el("figcaption", {}, el("button", { type: "button", class: "quiet", title: "Type a range", "aria-label": `Type a range of ${title}`, onclick: edit }, title.charAt(0).toUpperCase() + title.slice(1)), el("span", { class: "unit" }, this.unit), this.magnified, this.told, this.chip),
      this.drawing,
    );
    this.#watch();
  }

  /** Shows the range that is asked for, if any. */
  mark(range) {
    this.range = range;
    this.chip.hidden = !range;
    if (range) {
      const text = rangeText(range);
      this.chip.replaceChildren(text, el("span", { "aria-hidden": "true" }, "×"));
      this.chip.setAttribute("aria-label", `Remove the range ${text} of ${label(this.column)}`);
    }
    this.#rest();
  }

  update(data) {
    this.data = data;
    const most = Math.max(1, ...data.all);
    const factor = magnification(most, Math.max(...data.selected));
    this.magnified.textContent = factor > 1 ? `×${many(factor)}` : "";
    this.magnified.title = `the selection is drawn ${many(factor)} times as high`;
    for (const [kind, times] of [["all", 1], ["selected", factor]]) {
      for (const [i, bar] of this.bars[kind].entries()) {
        const count = data[kind][i];
        const height = count ? Math.max(1.5, ((times * count) / most) * (HEIGHT - 2)) : 0;
        bar.setAttribute("y", HEIGHT - height);
        bar.setAttribute("height", height);
      }
    }
    const counts = `${many(data.selected_known)} of ${many(data.known)}`;
    this.drawing.setAttribute("aria-label", `${label(this.column)}: selected are ${counts} known values`);
    this.#rest();
  }

  /** What stands there while nothing is pointed at: the counts, and the range that is asked for. */
  #rest() {
    const { data, range } = this;
    if (!data) return;
    this.told.textContent = range ? "" : `${many(data.selected_known)} / ${many(data.known)}`;
    const beyond = data.outside ? `; ${many(data.outside)} lie beyond the axis` : "";
    this.told.title = `known values in the selection, and of all materials${beyond}`;
    if (range) this.#bandOver(...bounds(range));
    else this.band.setAttribute("width", 0);
  }

  #bandOver(low, high) {
    const [x1, x2] = [this.scale(low), this.scale(high)];
    this.band.setAttribute("x", x1);
    this.band.setAttribute("width", Math.max(1, x2 - x1));
  }

  #bin(event) {
    const { left, width } = this.drawing.getBoundingClientRect();
    const n = this.edges.length - 1;
    return Math.max(0, Math.min(n - 1, Math.floor(((event.clientX - left) / width) * n)));
  }

  #watch() {
    let start = null;
    const over = (event) => {
      if (!this.data) return;
      const bin = this.#bin(event);
      const [from, to] = start === null ? [bin, bin] : [Math.min(start, bin), Math.max(start, bin)];
      const sum = (counts) => many(counts.slice(from, to + 1).reduce((a, b) => a + b, 0));
      this.#bandOver(this.edges[from], this.edges[to + 1]);
      this.element.classList.add("pointed");
      this.told.textContent = `${rangeText(binRange(this.edges, from, to))}: ${sum(this.data.selected)} / ${sum(this.data.all)}`;
    };
    const leave = () => {
      start = null;
      this.element.classList.remove("pointed");
      this.#rest();
    };
    this.drawing.addEventListener("pointermove", over);
    this.drawing.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      start = this.#bin(event);
      if (event.pointerType === "mouse") {
        event.preventDefault();
        this.drawing.setPointerCapture(event.pointerId);
      }
    });
    this.drawing.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const bin = this.#bin(event);
      const range = binRange(this.edges, Math.min(start, bin), Math.max(start, bin));
      leave();
      this.pick(range === this.range ? null : range);
    });
    this.drawing.addEventListener("pointerleave", () => {
      if (start === null) leave();
    });
    this.drawing.addEventListener("pointercancel", leave);
  }
}

/**
 * The distributions of all that is told of.
 *
 * `on.range(column, range or null)` and `on.system(name or null)` are called when a range of
 * bins or a crystal system is chosen or no longer wanted; `on.edit(column)` to type a range.
 */
export class Histograms {
  constructor(on) {
    this.on = on;
    this.charts = new Map();
    this.systems = new Map();
    this.list = el("div", { class: "systems" });
    this.element = el("aside", { class: "histograms", "aria-label": "Distributions" });
  }

  /** Shows which ranges (column -> "LOW:HIGH") and which crystal system are asked for. */
  mark(ranges, system) {
    for (const [column, chart] of this.charts) chart.mark(ranges.get(column));
    for (const [name, { row }] of this.systems) {
      if (name !== null) row.setAttribute("aria-pressed", name === system);
    }
  }

  /** Shows what GET /api/distributions answered. */
  update(data) {
    if (!this.systems.size) this.#make(data);
    for (const histogram of data.histograms) this.charts.get(histogram.column)?.update(histogram);
    const most = Math.max(1, ...data.crystal_systems.map((each) => each.all));
    for (const each of data.crystal_systems) this.#updateSystem(each, most);
  }

  #make(data) {
    for (const histogram of data.histograms) {
      const { column, edges } = histogram;
      if (edges.length < 2) continue;
      this.charts.set(column, new Histogram(histogram, (range) => this.on.range(column, range), () => this.on.edit(column)));
    }
    this.list.append(...data.crystal_systems.map(({ name }) => this.#makeSystem(name)));
    this.element.replaceChildren(
      ...[...this.charts.values()].map((chart) => chart.element),
      el("figure", { class: "histogram" }, el("figcaption", {}, el("b", {}, "Crystal system")), this.list),
    );
  }

  #makeSystem(name) {
    const parts = { all: el("i", { class: "all" }), selected: el("i", { class: "selected" }), count: el("span", { class: "count" }) };
    const content = [el("span", {}, name ?? "not known"), el("span", { class: "track" }, parts.all, parts.selected), parts.count];
    parts.row = name === null
      ? el("div", { class: "system" }, content)
      : el("button", { type: "button", class: "system", "data-system": name, onclick: () => this.on.system(parts.row.getAttribute("aria-pressed") === "true" ? null : name) }, content);
    this.systems.set(name, parts);
    return parts.row;
  }

  #updateSystem({ name, all, selected }, most) {
    const parts = this.systems.get(name);
    if (!parts) return;
    const share = (count) => (count ? `max(2px, ${(100 * count) / most}%)` : "0");
    parts.all.style.width = share(all);
    parts.selected.style.width = share(selected);
    parts.count.textContent = many(selected);
    parts.row.title = `${many(selected)} of ${many(all)}`;
  }
}
