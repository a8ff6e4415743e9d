/** A slice through a lattice plane: densities and their differences side by side, on canvases. */

import { css, DIVERGING, element, position, SEQUENTIAL, short, ticks } from "./colours.js";
import { debounced, el, errorPanel, getJson } from "./http.js";
import { differences, quantile, sourceName } from "./viewer.js";

const PRESETS = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, -1, 0], [1, 1, 1]];
const POINTS = 200;
const MARGIN = 0.18; // of the cell, shown around it
const HIGHEST = 360; // pixels
const DECADES = 1000; // a logarithmic scale spans three powers of ten
const PART = 0.998; // of the points of a difference, within its scale
const PEAKED = 8; // times the median is the maximum of a density that a linear scale would not show

/** Indices as crystallographers write them: (1 -1 0) with an overbar. */
export function millerText(miller) {
  return ["(", miller.flatMap((index) => [index < 0 ? el("span", { class: "overbar" }, String(-index)) : String(index), " "]).slice(0, -1), ")"].flat();
}

/**
 * A plane that shows bonds: of the simple ones the one with most of the shortest distances in it.
 *
 * @returns {{miller: number[], at: number}}
 */
export function tellingPlane({ lattice, species, fracCoords }) {
  const bonds = [];
  const most = Math.min(species.length, 24);
  for (let p = 0; p < most; p += 1) {
    for (let q = 0; q < most; q += 1) {
      for (let i = -1; i <= 1; i += 1) for (let j = -1; j <= 1; j += 1) for (let k = -1; k <= 1; k += 1) {
        if (p === q && i === 0 && j === 0 && k === 0) continue;
        const step = [i, j, k].map((n, axis) => fracCoords[q][axis] - fracCoords[p][axis] + n);
        const length = Math.hypot(...[0, 1, 2].map((axis) => step[0] * lattice[0][axis] + step[1] * lattice[1][axis] + step[2] * lattice[2][axis]));
        bonds.push({ p, step, length });
      }
    }
  }
  const shortest = Math.min(...bonds.map((bond) => bond.length));
  const near = bonds.filter((bond) => bond.length < 1.05 * shortest);
  let best = { miller: [0, 0, 1], at: 0, count: -1 };
  for (const miller of [[0, 0, 1], [1, 0, 0], [0, 1, 0], [1, -1, 0], [1, 0, -1], [0, 1, -1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]]) {
    const height = (place) => place[0] * miller[0] + place[1] * miller[1] + place[2] * miller[2];
    for (let p = 0; p < most; p += 1) {
      const at = fraction(height(fracCoords[p]));
      const count = near.filter((bond) => Math.abs(height(bond.step)) < 0.02 && apart(height(fracCoords[bond.p]), at) < 0.02).length;
      if (count > best.count) best = { miller, at, count };
    }
  }
  return { miller: best.miller, at: best.at };
}

function fraction(x) {
  const rest = Number((x - Math.floor(x)).toFixed(6));
  return rest >= 1 ? 0 : rest;
}

function commonDivisor(p, q) {
  return q ? commonDivisor(q, p % q) : p;
}

function apart(x, y) {
  const rest = Math.abs(x - y) % 1;
  return Math.min(rest, 1 - rest);
}

/** [least, largest]. */
function bounds(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value > high) high = value;
    if (value < low) low = value;
  }
  return [low, high];
}

function decode(text, length) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const values = new Float32Array(bytes.buffer);
  if (values.length !== length) throw new Error("the server answered with another number of points");
  return values;
}

/**
 * Shows slices.
 *
 * @param {HTMLElement} root
 * @param {{structure, base: string, sources: string[], late: string[], errors: object}} options
 *   `base`: URL of the material or upload; `late`: sources to leave out until `show` asks for them
 * @returns {{destroy: Function, ready: Promise, show: Function}}
 */
export function sliceView(root, { structure, base, sources, late, errors }) {
  const start = tellingPlane(structure);
  const state = { ...start, log: null };
  let wanted = sources.filter((source) => !late.includes(source));
  let plane = null;
  let fetching = null;
  let closed = false;
  let panels = [];

  const inputs = ["h", "k", "l"].map((name, axis) => el("input", { type: "number", step: 1, min: -50, max: 50, class: "miller", "aria-label": `Miller index ${name}`, value: state.miller[axis], oninput: () => {
    const miller = inputs.map((input) => Number(input.value));
    if (inputs.some((input) => input.value === "" || !Number.isInteger(Number(input.value)))) return;
    choose(miller);
  } }));
  const presets = PRESETS.map((miller) => el("button", { type: "button", "data-miller": miller.join(","), "aria-label": `plane ${miller.join(" ")}`, onclick: () => choose(miller) }, millerText(miller)));
  const slider = el("input", { type: "range", min: 0, max: 1, step: 0.005, value: state.at, "aria-label": "Position of the plane", oninput: () => move(Number(slider.value)) });
  const place = el("output", { class: "small" });
  const atoms = el("select", { "aria-label": "Plane through an atom", onchange: () => {
    if (atoms.value !== "") move(fraction(height(structure.fracCoords[Number(atoms.value)])));
  } }, el("option", { value: "" }, "through an atom…"), structure.species.map((symbol, index) =>
    el("option", { value: index }, `${symbol} ${index + 1}: ${structure.fracCoords[index].map((x) => x.toFixed(3)).join(", ")}`)));
  const scales = [["Linear", false], ["Log", true]].map(([name, log]) => el("button", { type: "button", "aria-pressed": "false", onclick: () => {
    state.log = log;
    paint();
  } }, name));
  const problem = el("div", { role: "status" });
  const lateProblem = el("div", { role: "status" });
  const board = el("div", { class: "boards" });
  const keys = el("div", { class: "keys" });
  const readout = el("p", { class: "readout small", "aria-live": "off" });
  const view = el("div", { class: "slice-view" },
    el("div", { class: "slice-controls" },
      el("div", { class: "field" }, el("span", { class: "small muted" }, "Miller indices h k l, of this cell"), el("div", { class: "row" }, inputs, el("div", { class: "row joined", role: "group", "aria-label": "Common planes" }, presets))),
      el("div", { class: "field position" }, el("span", { class: "small muted" }, "Position ", place), slider),
      el("label", { class: "field" }, "Plane", atoms),
      el("div", { class: "field" }, el("span", { class: "small muted" }, "Colours"), el("div", { class: "row joined", role: "group", "aria-label": "Scale of the colours" }, scales))),
    problem, board, lateProblem, readout);
  root.append(view);

  function height(x) {
    return state.miller[0] * x[0] + state.miller[1] * x[1] + state.miller[2] * x[2];
  }

  /** Shows a plane: of indices with a common divisor the same as without it, as on the server. */
  function choose(miller) {
    const divisor = miller.map(Math.abs).reduce(commonDivisor) || 1;
    state.miller = miller.map((index) => index / divisor);
    inputs.forEach((input, axis) => {
      if (Number(input.value) !== miller[axis]) input.value = miller[axis];
    });
    if (atoms.value !== "") state.at = fraction(height(structure.fracCoords[Number(atoms.value)]));
    slider.value = state.at;
    load();
  }

  function move(at) {
    state.at = at;
    slider.value = at;
    if (atoms.value !== "" && apart(height(structure.fracCoords[Number(atoms.value)]), at) > 0.003) atoms.value = "";
    load();
  }

  /** Asks for the plane; while an answer is on its way, only the last wish is remembered. */
  let again = false;
  async function load() {
    for (const button of presets) button.setAttribute("aria-pressed", String(button.dataset.miller === state.miller.join(",")));
    tellPlace();
    if (fetching) {
      again = true;
      return fetching.done;
    }
    fetching = { abort: new AbortController() };
    fetching.done = request(fetching.abort.signal).finally(() => {
      fetching = null;
      if (again && !closed) {
        again = false;
        return load();
      }
      return undefined;
    });
    return fetching.done;
  }

  async function request(signal) {
    const ask = async (asked) => {
      const query = new URLSearchParams({ miller: state.miller.join(","), at: state.at, sources: asked.join(","), points: POINTS });
      const answer = await getJson(`${base}/plane?${query}`, { signal });
      const length = answer.shape[0] * answer.shape[1];
      for (const found of answer.fields) found.values = decode(found.values, length);
      if (closed) return;
      plane = answer;
      problem.replaceChildren();
      layOut();
      paint();
      tellPlace();
    };
    const early = wanted.filter((source) => !late.includes(source));
    try {
      try {
        await ask(wanted);
      } catch (error) {
        if (error.name === "AbortError" || early.length === wanted.length) throw error;
        await ask(early); // what fails without the late ones too is not for them to tell
        wanted = early;
        lateProblem.replaceChildren(errorPanel(error));
      }
    } catch (error) {
      if (!closed && error.name !== "AbortError") problem.replaceChildren(errorPanel(error));
    }
  }

  function tellPlace() {
    const spacing = plane?.spacing;
    const same = plane && plane.at === state.at;
    place.value = `${state.at.toFixed(3)} of the spacing${same ? ` = ${(state.at * spacing).toFixed(3)} of ${spacing.toFixed(3)} Å` : ""}`;
  }

  /** Makes a figure for every density and difference in the answer, if these are other ones. */
  function layOut() {
    const names = plane.fields.map((found) => found.source);
    const specs = [...names.map((source) => ({ key: source, signed: false })), ...differences(names).map((pair) => ({ key: pair.join("-"), signed: true }))];
    if (specs.map((spec) => spec.key).join() === panels.map((panel) => panel.key).join()) return;
    panels = specs.map((spec) => {
      const canvas = el("canvas", { role: "img", onpointermove: (event) => hover(event, canvas), onpointerleave: () => hover(null) });
      const value = el("span", { class: "slice-value" });
      const bar = el("div", {});
      const figure = el("figure", { class: "slice", "data-source": spec.key }, el("figcaption", {}, el("span", {}, caption(spec)), value), canvas, bar);
      return { ...spec, canvas, value, bar, figure };
    });
    const of = (signed) => panels.filter((panel) => panel.signed === signed).map((panel) => panel.figure);
    const kept = of(true);
    board.replaceChildren(...(kept.length > 1 ? [el("div", { class: "slices" }, of(false)), keys, el("div", { class: "slices" }, kept)] : [el("div", { class: "slices" }, panels.map((panel) => panel.figure)), keys]));
  }

  /** Name and stored error; a latent's or payload's difference from the original has that too. */
  function caption({ key, signed }) {
    const [first, second] = key.split("-");
    const nmae = (!signed || second === "original") ? errors[first]?.nmae : null;
    return [el("b", {}, sourceName(key)), nmae === null || nmae === undefined ? null : el("span", { class: "muted" }, ` NMAE ${short(nmae)} %`)];
  }

  function valuesOf(key) {
    const [first, second] = key.split("-").map((source) => plane.fields.find((found) => found.source === source).values);
    return second ? first.map((value, index) => value - second[index]) : first;
  }

  /** The one scale of all densities. */
  function densityScale() {
    const all = panels.filter((panel) => !panel.signed).map((panel) => bounds(panel.values));
    const low = Math.min(...all.map(([least]) => least));
    const high = Math.max(0, ...all.map(([, most]) => most)) || 1;
    state.log ??= high > PEAKED * quantile(panels[0].values, 0.5);
    if (!state.log) return { low: Math.min(low, 0), high, log: false };
    return { low: Math.min(Math.max(low, high / DECADES), high / 10), high, log: true };
  }

  /** The scale of a difference: a few points must not make the rest of it white. */
  function differenceScale({ values }) {
    const [least, most] = bounds(values);
    const wide = quantile(values.map(Math.abs), PART) || 1;
    const beyond = Math.max(-least, most) > wide ? `; full colour beyond ±${short(wide)} (extremes ${short(least)} and ${short(most)})` : "";
    return { low: -wide, high: wide, log: false, name: `e/Å³, a scale of its own${beyond}` };
  }

  const repaint = debounced(() => plane && !closed && paint(), 60);
  const resized = new ResizeObserver(repaint);
  resized.observe(board);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", repaint);

  let frame = null; // the window of the plane that is drawn, and its inverse

  function paint() {
    if (!plane || !panels.length) return;
    for (const panel of panels) panel.values = valuesOf(panel.key);
    const density = densityScale();
    frame = windowOf(plane, panels[0].figure.clientWidth || 280);
    for (const panel of panels) {
      const scale = panel.signed ? differenceScale(panel) : density;
      drawPanel(panel, scale);
      if (panel.signed) panel.bar.replaceChildren(colourBar(scale, DIVERGING, scale.name));
      const miller = plane.miller.join(" ");
      panel.canvas.setAttribute("aria-label", `${sourceName(panel.key)} in the plane (${miller}) at ${plane.at}`);
    }
    keys.replaceChildren(colourBar(density, SEQUENTIAL, "densities, e/Å³"), legend());
    scales.forEach((button) => button.setAttribute("aria-pressed", String((button.textContent === "Log") === state.log)));
    view.dataset.miller = plane.miller.join(",");
    view.dataset.at = String(plane.at);
    view.dataset.scale = state.log ? "log" : "linear";
    view.dataset.sources = panels.map((panel) => panel.key).join(" ");
  }

  function drawPanel(panel, scale) {
    const { width, height, ratio } = frame;
    const { canvas } = panel;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const drawing = canvas.getContext("2d");
    const image = drawing.createImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(image.data.buffer);
    const table = panel.signed ? DIVERGING : SEQUENTIAL;
    for (let row = 0, pixel = 0; row < canvas.height; row += 1) {
      for (let column = 0; column < canvas.width; column += 1, pixel += 1) {
        const [s, t] = frame.fractional((column + 0.5) / ratio, (row + 0.5) / ratio);
        pixels[pixel] = table[Math.round(255 * position(interpolate(panel.values, s, t), scale))];
      }
    }
    drawing.putImageData(image, 0, 0);
    drawing.scale(ratio, ratio);
    outline(drawing, panel.signed);
    markAtoms(drawing, panel.signed);
  }

  /** Bilinear, periodic. */
  function interpolate(values, s, t) {
    const [m1, m2] = plane.shape;
    const x = (s - Math.floor(s)) * m1;
    const y = (t - Math.floor(t)) * m2;
    const [i, j] = [Math.floor(x) % m1, Math.floor(y) % m2];
    const [i1, j1] = [(i + 1) % m1, (j + 1) % m2];
    const [p, q] = [x - Math.floor(x), y - Math.floor(y)];
    return (values[i * m2 + j] * (1 - q) + values[i * m2 + j1] * q) * (1 - p) + (values[i1 * m2 + j] * (1 - q) + values[i1 * m2 + j1] * q) * p;
  }

  function outline(drawing, signed) {
    drawing.beginPath();
    for (const [s, t] of [[0, 0], [1, 0], [1, 1], [0, 1]]) drawing.lineTo(...frame.pixel(s, t));
    drawing.closePath();
    drawing.lineWidth = 1;
    drawing.strokeStyle = signed ? "rgb(0 0 0 / 55%)" : "rgb(255 255 255 / 75%)";
    drawing.stroke();
  }

  function markAtoms(drawing) {
    for (const atom of plane.atoms) {
      for (let i = -3; i <= 3; i += 1) for (let j = -3; j <= 3; j += 1) {
        const [x, y] = frame.pixel(atom.s + i, atom.t + j);
        if (x < -6 || y < -6 || x > frame.width + 6 || y > frame.height + 6) continue;
        drawing.globalAlpha = 1 - 1.5 * Math.min(Math.abs(atom.distance), 0.5);
        drawing.beginPath();
        drawing.arc(x, y, 4, 0, 2 * Math.PI);
        drawing.fillStyle = element(atom.symbol).colour;
        drawing.fill();
        drawing.lineWidth = 1.5;
        drawing.strokeStyle = "#000";
        drawing.stroke();
      }
    }
    drawing.globalAlpha = 1;
  }

  function hover(event, canvas) {
    for (const panel of panels) panel.value.textContent = "";
    readout.textContent = "";
    if (!event || !frame || !plane) return;
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const [s, t] = frame.fractional(x, y);
    for (const panel of panels) panel.value.textContent = `${short(interpolate(panel.values, s, t))} e/Å³`;
    const [u, v, w] = plane.basis;
    const at = [0, 1, 2].map((axis) => fraction(s * u[axis] + t * v[axis] + plane.at * w[axis]).toFixed(3));
    readout.textContent = `Pointer at ${at.join(", ")} of a, b, c`;
  }

  function colourBar(scale, table, name) {
    const stops = Array.from({ length: 17 }, (_, index) => css(table[Math.round((index * 255) / 16)])).join(", ");
    return el("div", { class: "colour-bar" }, el("div", { class: "small muted" }, `${name}${scale.log ? ", logarithmic" : ""}`),
      el("div", { class: "ramp", style: { background: `linear-gradient(to right, ${stops})` } }),
      el("div", { class: "ticks" }, ticks(scale).map((value) => el("span", { style: { left: `${100 * position(value, scale)}%` } }, short(value)))));
  }

  function legend() {
    const symbols = [...new Set(plane.atoms.map((atom) => atom.symbol))];
    return el("div", { class: "small muted" }, "Atoms within 0.5 Å, fainter the farther: ", symbols.length ? symbols.map((symbol) =>
      [el("span", { class: "dot", style: { background: element(symbol).colour } }), `${symbol} `]) : "none");
  }

  return {
    ready: wanted.length ? load() : Promise.resolve(),
    /** Shows these sources, the late ones too. */
    async show(more) {
      wanted = sources.filter((source) => wanted.includes(source) || more.includes(source));
      await load();
    },
    destroy() {
      closed = true;
      fetching?.abort.abort();
      repaint.cancel();
      resized.disconnect();
      scheme.removeEventListener("change", repaint);
    },
  };
}

/** The rectangle around the cell of a plane and a margin, `width` pixels wide at most. */
function windowOf({ u, v }, width) {
  const corners = [[0, 0], [1, 0], [1, 1], [0, 1]].map(([s, t]) => [s * u[0] + t * v[0], s * u[1] + t * v[1]]);
  const [left, right] = [Math.min(...corners.map(([x]) => x)), Math.max(...corners.map(([x]) => x))];
  const [bottom, top] = [Math.min(...corners.map(([, y]) => y)), Math.max(...corners.map(([, y]) => y))];
  const margin = MARGIN * Math.min(Math.hypot(...u), Math.hypot(...v));
  let [w, h] = [right - left + 2 * margin, top - bottom + 2 * margin];
  // the window is never upright nor very flat: then it shows more of the neighbouring cells
  const [wide, high] = [Math.max(w, h), Math.max(h, w / 1.7)];
  const [x0, y1] = [left - margin - (wide - w) / 2, top + margin + (high - h) / 2];
  [w, h] = [wide, high];
  const scale = Math.min(width / w, Math.min(1.25 * width, HIGHEST) / h);
  const area = u[0] * v[1] - u[1] * v[0];
  return {
    width: Math.floor(w * scale),
    height: Math.floor(h * scale),
    ratio: Math.min(devicePixelRatio || 1, 2),
    pixel(s, t) {
      return [(s * u[0] + t * v[0] - x0) * scale, (y1 - s * u[1] - t * v[1]) * scale];
    },
    fractional(px, py) {
      const [x, y] = [px / scale + x0, y1 - py / scale];
      return [(x * v[1] - y * v[0]) / area, (y * u[0] - x * u[1]) / area];
    },
  };
}
