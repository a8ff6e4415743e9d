/** The crystal in three dimensions: atoms, cell, and isosurfaces of a density, with their controls. */

import { element, LESS, LEVEL_COLOURS, MORE, short } from "./colours.js";
import { el, errorPanel } from "./http.js";
import { isosurface } from "./isosurface.js";

const SCRIPT = "/page/vendor/3Dmol-min.js";
const STEPS = 1000;
const MOST_LEVELS = LEVEL_COLOURS.length;
const AXIS_COLOURS = ["#d1493f", "#3a9d5d", "#3f62d6"];
const NEAR = 1e-3;
const [TURN, TILT] = [-0.1, 0.3]; // of the first view, radians about the upright and the level axis

/** What the sources are called. */
export const SOURCE_NAMES = { original: "original", payload: "payload-decoded", latent: "latent-decoded" };

/** The differences that can be had of some sources: [minuend, subtrahend]. */
export function differences(sources) {
  return [["latent", "payload"], ["payload", "original"], ["latent", "original"]]
    .filter((pair) => pair.every((source) => sources.includes(source)));
}

/** How a source or a difference ("latent-original") is called. */
export function sourceName(key) {
  const [first, second] = key.split("-");
  return second ? `${first} − ${second}` : SOURCE_NAMES[first];
}

let library = null;

/** 3Dmol.js, loaded when the first crystal is shown. */
function load3Dmol() {
  library ??= new Promise((resolve, reject) => {
    const script = el("script", { src: SCRIPT });
    script.onload = () => resolve(window.$3Dmol);
    script.onerror = () => {
      library = null;
      reject(new Error(`${SCRIPT} cannot be loaded`));
    };
    document.head.append(script);
  });
  return library;
}

/** One viewer, and so one WebGL context, for the life of the page: views borrow it in turn. */
let stage = null;

async function borrowStage(parent) {
  const library3d = await load3Dmol();
  if (!stage) {
    const box = el("div", { class: "stage" });
    parent.append(box);
    const viewer = library3d.createViewer(box, { antialias: true, upscale: false, disableFog: true, orthographic: true });
    if (!viewer) throw new Error("this browser cannot draw in three dimensions: it has no WebGL");
    stage = { box, viewer };
  } else {
    parent.append(stage.box);
    stage.viewer.resize();
  }
  return stage;
}

/** The vector of fractional coordinates. */
function cartesian([x, y, z], [a, b, c]) {
  return { x: x * a[0] + y * b[0] + z * c[0], y: x * a[1] + y * b[1] + z * c[1], z: x * a[2] + y * b[2] + z * c[2] };
}

function cross(p, q) {
  return [p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]];
}

/** Rows a*, b*, c* (without 2 pi), and the signed volume. */
function reciprocal([a, b, c]) {
  const rows = [cross(b, c), cross(c, a), cross(a, b)];
  const volume = a[0] * rows[0][0] + a[1] * rows[0][1] + a[2] * rows[0][2];
  return { rows: rows.map((row) => row.map((x) => x / volume)), volume };
}

function unit(p) {
  const length = Math.hypot(...p);
  return p.map((x) => x / length);
}

/** Quaternion (x, y, z, w) that shows c upright, a to the left and b to the right, a little turned. */
function firstView([a, b, c]) {
  const up = unit(c);
  const apart = b.map((x, axis) => x - a[axis]);
  const along = apart[0] * up[0] + apart[1] * up[1] + apart[2] * up[2];
  const right = unit(apart.map((x, axis) => x - along * up[axis]));
  const out = cross(right, up);
  const mixed = (p, q, angle) => p.map((x, axis) => x * Math.cos(angle) + q[axis] * Math.sin(angle));
  const [x, turned] = [mixed(right, out, TURN), mixed(out, right, -TURN)];
  const [y, z] = [mixed(up, turned, -TILT), mixed(turned, up, TILT)];
  const trace = x[0] + y[1] + z[2];
  // the rows x, y, z are a rotation; its quaternion by the largest of the four (Shepperd, 1978)
  const sizes = [x[0], y[1], z[2], trace];
  const i = sizes.indexOf(Math.max(...sizes));
  const rows = [x, y, z];
  if (i === 3) {
    const w = Math.sqrt(1 + trace) / 2;
    return [(z[1] - y[2]) / (4 * w), (x[2] - z[0]) / (4 * w), (y[0] - x[1]) / (4 * w), w];
  }
  const [j, k] = [(i + 1) % 3, (i + 2) % 3];
  const size = Math.sqrt(1 + 2 * rows[i][i] - trace) / 2;
  const found = [0, 0, 0, (rows[k][j] - rows[j][k]) / (4 * size)];
  found[i] = size;
  found[j] = (rows[j][i] + rows[i][j]) / (4 * size);
  found[k] = (rows[k][i] + rows[i][k]) / (4 * size);
  return found;
}

/** All images of the atoms in `repeat` cells, those on their far faces too. */
export function atomsShown({ species, fracCoords }, repeat) {
  const shown = [];
  fracCoords.forEach((place, index) => {
    const choices = place.map((x) => {
      let first = x - Math.floor(x);
      if (first > 1 - NEAR) first -= 1;
      const along = [];
      for (let at = first; at <= repeat + NEAR; at += 1) along.push(at);
      return along;
    });
    for (const x of choices[0]) for (const y of choices[1]) for (const z of choices[2]) shown.push({ symbol: species[index], place: [x, y, z] });
  });
  return shown;
}

/** The value below which a part of the values lies, from a sample of them. */
export function quantile(values, part) {
  const step = Math.max(1, Math.floor(values.length / 20000));
  const sample = [];
  for (let i = 0; i < values.length; i += step) sample.push(values[i]);
  sample.sort((p, q) => p - q);
  return sample[Math.min(sample.length - 1, Math.floor(part * sample.length))];
}

/** Levels to begin with: the first around bonds and atoms, the second around what links them. */
function telling(values, signed) {
  if (signed) return [quantile(values, 0.97)];
  const [lowest, highest] = [quantile(values, 0), quantile(values, 1)];
  const first = Math.min(quantile(values, 0.95), lowest + 0.85 * (highest - lowest)); // flat ones lie below
  return [first, Math.min(quantile(values, 0.7), 0.8 * first)];
}

/**
 * Shows a crystal.
 *
 * @param {HTMLElement} root
 * @param {{structure: {lattice, species, fracCoords}, sources: string[], stored: number[], field: Function}} options
 *   `field(source)` promises {grid, values} in e/A^3, perhaps on a coarser grid than the `stored`
 *   one; no sources: atoms and cell only
 * @returns {{destroy: Function, ready: Promise}} ready once the first picture is drawn
 */
export function crystalView(root, { structure, sources, stored, field }) {
  const canvasBox = el("div", { class: "crystal", tabIndex: 0, role: "application", "aria-label": "Crystal structure: arrow keys turn it, plus and minus zoom, 0 resets the view" });
  const message = el("div", { class: "crystal-message", role: "status" }, "Drawing…");
  const legend = el("ul", { class: "crystal-elements", "aria-label": "Elements" }, [...new Set(structure.species)].map((symbol) =>
    el("li", {}, el("span", { class: "dot", style: { background: element(symbol).colour } }), symbol)));
  const controls = el("div", { class: "crystal-controls" });
  const view = el("div", { class: "crystal-view" }, el("div", { class: "crystal-box" }, canvasBox, legend, message), controls);
  root.append(view);

  const { rows: inverse, volume } = reciprocal(structure.lattice);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const state = { key: sources.includes("payload") ? "payload" : sources[0], repeat: 1, spin: false, levels: { density: [], difference: [] } };
  let viewer = null;
  let shown = null; // {values, grid, negative, range, levels, signed}
  let closed = false;
  let frame = 0;
  const changed = new Set();
  let cellShapes = [];

  const resized = new ResizeObserver(() => viewer?.resize());

  function drawCell() {
    for (const shape of cellShapes) discard(shape);
    viewer.removeAllLabels();
    viewer.removeAllModels();
    const model = viewer.addModel();
    model.addAtoms(atomsShown(structure, state.repeat).map(({ symbol, place }, index) => ({ elem: symbol, serial: index, ...cartesian(place, structure.lattice), bonds: [] })));
    for (const symbol of new Set(structure.species)) {
      const { colour, radius } = element(symbol);
      model.setStyle({ elem: symbol }, { sphere: { radius: 0.15 + 0.2 * radius, color: colour } });
    }
    const style = getComputedStyle(view);
    viewer.setBackgroundColor(style.getPropertyValue("--sunken"), 1); // transparent surfaces need an opaque ground
    const size = Math.cbrt(Math.abs(volume));
    const width = (0.005 * size + 0.008) * state.repeat ** 0.5;
    const edges = [];
    const axes = [];
    for (const [i, j, k] of corners(state.repeat)) {
      [[1, 0, 0], [0, 1, 0], [0, 0, 1]].forEach((step, axis) => {
        const end = [i + step[0], j + step[1], k + step[2]];
        if (end[axis] > state.repeat) return;
        const first = i === 0 && j === 0 && k === 0;
        (first ? axes : edges).push([cartesian([i, j, k], structure.lattice), cartesian(end, structure.lattice)]);
      });
    }
    cellShapes = [viewer.addCustom({ ...bars(edges, width), color: style.getPropertyValue("--muted") }),
      ...axes.map((axis, index) => viewer.addCustom({ ...bars([axis], 1.8 * width), color: AXIS_COLOURS[index] }))];
    ["a", "b", "c"].forEach((text, axis) => {
      const place = [0, 0, 0].map((_, other) => (other === axis ? 1 + 0.8 / Math.hypot(...structure.lattice[axis]) : 0));
      viewer.addLabel(text, { position: cartesian(place, structure.lattice), showBackground: false, fontColor: AXIS_COLOURS[axis], fontSize: 17, inFront: true, alignment: "center" });
    });
  }

  function discard(shape) {
    viewer.removeShape(shape);
    shape.geo?.dispose?.();
  }

  function removeSurfaces(level) {
    for (const shape of level.shapes) discard(shape);
    level.shapes = [];
    level.triangles = 0;
  }

  function drawLevel(level) {
    removeSurfaces(level);
    const parts = shown.signed
      ? [[shown.values, MORE], [shown.negative, LESS]]
      : [[shown.values, level.colour]];
    for (const [values, color] of parts) {
      const { places, normals, faces } = isosurface(values, shown.grid, level.value);
      if (!faces.length) continue;
      if (volume < 0) for (let i = 0; i < faces.length; i += 3) [faces[i], faces[i + 1]] = [faces[i + 1], faces[i]];
      const normalArr = normals.map((g) => {
        const n = [0, 1, 2].map((axis) => -(g[0] * inverse[0][axis] + g[1] * inverse[1][axis] + g[2] * inverse[2][axis]));
        const size = Math.hypot(...n) || 1;
        return { x: n[0] / size, y: n[1] / size, z: n[2] / size };
      });
      for (const shift of corners(state.repeat - 1)) {
        const vertexArr = places.map((place) => cartesian([place[0] + shift[0], place[1] + shift[1], place[2] + shift[2]], structure.lattice));
        level.shapes.push(viewer.addCustom({ vertexArr, normalArr, faceArr: faces, color, opacity: level.opacity }));
      }
      level.triangles += faces.length / 3;
    }
  }

  /** Draws the changed levels in the next frame. */
  function draw(...levels) {
    for (const level of levels) changed.add(level);
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      if (closed || !viewer) return;
      if (shown) for (const level of changed) if (shown.levels.includes(level)) drawLevel(level);
      changed.clear();
      viewer.render();
      tell();
    });
  }

  function tell() {
    const levels = shown?.levels ?? [];
    view.dataset.source = shown ? state.key : "";
    view.dataset.level = levels.map((level) => level.value.toPrecision(6)).join(" ");
    view.dataset.triangles = String(levels.reduce((sum, level) => sum + level.triangles, 0));
  }

  function resetView() {
    viewer.zoomTo();
    viewer.setView([...viewer.getView().slice(0, 4), ...firstView(structure.lattice)]);
    fill();
    viewer.render();
  }

  /** Zooms so that the cells fill the picture. */
  function fill() {
    const box = stage.box.getBoundingClientRect();
    const [x0, y0] = [box.left + scrollX + box.width / 2, box.top + scrollY + box.height / 2];
    const ends = corners(1).map((corner) => cartesian(corner.map((x) => x * state.repeat), structure.lattice));
    const seen = viewer.modelToScreen(ends);
    const across = Math.max(...seen.map(({ x }) => Math.abs(x - x0))) / (0.42 * box.width);
    const upright = Math.max(...seen.map(({ y }) => Math.abs(y - y0))) / (0.37 * box.height);
    viewer.zoom(1 / Math.max(across, upright));
  }

  async function showSource(key) {
    state.key = key;
    select.value = key;
    message.hidden = false;
    message.replaceChildren("Loading the density…");
    let found;
    try {
      found = await Promise.all(key.split("-").map(field));
    } catch (error) {
      if (!closed && state.key === key) message.replaceChildren(errorPanel(error));
      return;
    }
    if (closed || state.key !== key) return;
    for (const level of shown?.levels ?? []) removeSurfaces(level);
    const [{ grid, values: first }, second] = found;
    const signed = Boolean(second);
    const values = signed ? first.map((value, index) => value - second.values[index]) : first;
    let most = 0;
    for (const value of values) if (Math.abs(value) > most) most = Math.abs(value);
    const size = signed ? values.map(Math.abs) : values;
    const high = most * 0.98 || 1;
    const low = signed ? high / 1000 : Math.max(high / 1000, Math.min(quantile(size, 0.01), high / 4));
    shown = { grid, values, signed, negative: signed ? values.map((value) => -value) : null, range: { low, high }, levels: state.levels[signed ? "difference" : "density"] };
    if (!shown.levels.length) {
      telling(size, signed).forEach((value, index) => shown.levels.push(newLevel(value, index, index ? 0.4 : 0.85)));
    }
    for (const level of shown.levels) level.value = Math.min(Math.max(level.value, low), high);
    message.hidden = true;
    const coarser = grid.some((n, axis) => n < stored[axis]);
    coarse.textContent = coarser ? `Drawn on ${grid.join(" × ")} points, coarser than the grid of the density, ${stored.join(" × ")}.` : "";
    listLevels();
    draw(...shown.levels);
  }

  function newLevel(value, index, opacity) {
    return { value, colour: LEVEL_COLOURS[index % LEVEL_COLOURS.length], opacity, shapes: [], triangles: 0 };
  }

  // controls

  const options = [...sources, ...differences(sources).map((pair) => pair.join("-"))];
  const select = el("select", { "aria-label": "Density shown", onchange: () => showSource(select.value) }, options.map((key) => el("option", { value: key }, sourceName(key))));
  const list = el("div", { class: "levels" });
  const coarse = el("div", { class: "small muted" });
  const addLevel = el("button", { type: "button", class: "quiet", onclick: () => {
    const { low, high } = shown.range;
    const index = shown.levels.length;
    const level = newLevel(Math.sqrt(low * high), index, 0.4);
    shown.levels.push(level);
    listLevels();
    draw(level);
    list.lastElementChild.querySelector("input[type=range]").focus();
  } }, "Add a level");
  const repeats = [1, 2].map((repeat) => el("button", { type: "button", "aria-pressed": String(repeat === 1), onclick: () => {
    state.repeat = repeat;
    for (const button of repeats) button.setAttribute("aria-pressed", String(button === repeats[repeat - 1]));
    if (!viewer) return;
    drawCell();
    viewer.zoomTo();
    fill();
    draw(...(shown?.levels ?? []));
  } }, `${repeat}×${repeat}×${repeat}`));
  const spin = el("button", { type: "button", "aria-pressed": "false", onclick: () => {
    state.spin = !state.spin;
    spin.setAttribute("aria-pressed", String(state.spin));
    viewer?.spin(state.spin ? "vy" : false, 0.6);
  } }, "Rotate");
  const reset = el("button", { type: "button", onclick: () => viewer && resetView() }, "Reset view");

  function listLevels() {
    const { range, levels, signed } = shown;
    list.replaceChildren(...levels.map((level, index) => levelRow(level, index, range, levels, signed)));
    addLevel.disabled = levels.length >= MOST_LEVELS;
  }

  function levelRow(level, index, { low, high }, levels, signed) {
    const toStep = (value) => Math.round((STEPS * Math.log(value / low)) / Math.log(high / low));
    const name = `Level ${index + 1}`;
    const slider = el("input", { type: "range", min: 0, max: STEPS, step: 1, "aria-label": `${name}, logarithmic` });
    const number = el("input", { type: "number", step: "any", min: 0, class: "level-number", "aria-label": `${name} in e/Å³` });
    const write = (target) => {
      if (target !== slider) slider.value = toStep(level.value);
      if (target !== number) number.value = Number(level.value.toPrecision(3));
      slider.setAttribute("aria-valuetext", `${short(level.value)} e/Å³`);
    };
    slider.addEventListener("input", () => {
      level.value = low * (high / low) ** (slider.value / STEPS);
      write(slider);
      draw(level);
    });
    number.addEventListener("input", () => {
      const value = Number(number.value);
      number.setAttribute("aria-invalid", String(!(value > 0)));
      if (!(value > 0)) return;
      level.value = value;
      write(number);
      draw(level);
    });
    write(null);
    const colour = signed
      ? el("span", { class: "swatches", title: "more, less" }, el("span", { style: { background: MORE } }), el("span", { style: { background: LESS } }))
      : el("input", { type: "color", value: level.colour, "aria-label": `${name}, colour`, oninput: (event) => {
        level.colour = event.target.value;
        draw(level);
      } });
    const opacity = el("input", { type: "range", class: "opacity", min: 0.05, max: 1, step: 0.05, value: level.opacity, title: "opacity", "aria-label": `${name}, opacity`, oninput: () => {
      level.opacity = Number(opacity.value);
      draw(level);
    } });
    const remove = el("button", { type: "button", class: "quiet", "aria-label": `Remove level ${index + 1}`, title: "Remove", onclick: () => {
      removeSurfaces(level);
      levels.splice(index, 1);
      listLevels();
      draw();
    } }, "×");
    return el("div", { class: "level" }, colour, slider, el("span", { class: "level-value" }, signed ? "±" : "", number, " e/Å³"), opacity, remove);
  }

  if (sources.length) {
    controls.append(
      el("label", { class: "field" }, "Density", select),
      el("div", { class: "field" }, el("span", { class: "small muted" }, "Isosurfaces: level, opacity"), list, coarse, el("div", {}, addLevel)),
    );
  }
  controls.append(el("div", { class: "field" }, el("span", { class: "small muted" }, "Cells and view"), el("div", { class: "row" }, el("div", { class: "row joined", role: "group", "aria-label": "Cells shown" }, repeats), spin, reset)),
    el("p", { class: "small muted" }, "Drag to turn; click, then scroll to zoom; arrow keys, +, − and 0 work too."));

  canvasBox.addEventListener("pointerdown", () => canvasBox.focus({ preventScroll: true }));
  canvasBox.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvasBox) event.stopPropagation();
  }, { capture: true });
  canvasBox.addEventListener("keydown", (event) => {
    const act = {
      ArrowLeft: () => viewer.rotate(-10, "vy"), ArrowRight: () => viewer.rotate(10, "vy"),
      ArrowUp: () => viewer.rotate(-10, "vx"), ArrowDown: () => viewer.rotate(10, "vx"),
      "+": () => viewer.zoom(1.15), "=": () => viewer.zoom(1.15), "-": () => viewer.zoom(1 / 1.15), 0: resetView,
    }[event.key];
    if (!act || !viewer || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    act();
    viewer.render();
  });
  const recolour = () => {
    if (!viewer) return;
    drawCell();
    viewer.render();
  };
  scheme.addEventListener("change", recolour);

  async function start() {
    const first = sources.length ? field(state.key).catch(() => null) : null; // asked while 3Dmol loads
    try {
      const borrowed = await borrowStage(canvasBox);
      if (closed) return;
      viewer = borrowed.viewer;
    } catch (error) {
      message.replaceChildren(errorPanel(error));
      return;
    }
    viewer.clear();
    resized.observe(canvasBox);
    drawCell();
    resetView();
    message.hidden = true;
    if (first) await showSource(state.key);
    if (closed) return;
    await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
    view.dataset.ready = "true";
  }

  return {
    ready: start(),
    destroy() {
      closed = true;
      cancelAnimationFrame(frame);
      resized.disconnect();
      scheme.removeEventListener("change", recolour);
      if (!viewer) return;
      viewer.spin(false);
      for (const levels of Object.values(state.levels)) for (const level of levels) removeSurfaces(level);
      viewer.clear();
      if (canvasBox.contains(stage.box)) stage.box.remove();
    },
  };
}

/** Six-sided bars between pairs of points, as 3Dmol takes a mesh. */
function bars(pairs, radius) {
  const [vertexArr, normalArr, faceArr] = [[], [], []];
  for (const [from, to] of pairs) {
    const along = unit([to.x - from.x, to.y - from.y, to.z - from.z]);
    const side = unit(cross(along, Math.abs(along[0]) < 0.8 ? [1, 0, 0] : [0, 1, 0]));
    const other = cross(along, side);
    const start = vertexArr.length;
    for (let corner = 0; corner < 6; corner += 1) {
      const [p, q] = [Math.cos((corner * Math.PI) / 3), Math.sin((corner * Math.PI) / 3)];
      const [x, y, z] = side.map((value, axis) => p * value + q * other[axis]);
      for (const [end, lean] of [[from, -0.8], [to, 0.8]]) {
        vertexArr.push({ x: end.x + radius * x, y: end.y + radius * y, z: end.z + radius * z });
        // leaning to the ends, so that a bar that points to the light is not dark
        normalArr.push({ x: x + lean * along[0], y: y + lean * along[1], z: z + lean * along[2] });
      }
      const [low, next] = [start + 2 * corner, start + 2 * ((corner + 1) % 6)];
      faceArr.push(low, next, next + 1, low, next + 1, low + 1);
    }
  }
  return { vertexArr, normalArr, faceArr };
}

/** Integer points 0 ... n along each axis. */
function corners(n) {
  const found = [];
  for (let i = 0; i <= n; i += 1) for (let j = 0; j <= n; j += 1) for (let k = 0; k <= n; k += 1) found.push([i, j, k]);
  return found;
}
