/** What every view shares: asking the server, and building the page. */

/** An answer that is no answer; the message is the server's one line. */
export class HttpError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.name = "HttpError";
    this.status = status;
  }
}

async function ask(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new HttpError("the server does not answer; is chgdb ui still running?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new HttpError(told?.error ?? `the server answered ${response.status}`, response.status);
}

/** The JSON at a URL. Raises HttpError, or AbortError after `signal`. */
export async function getJson(url, { signal } = {}) {
  return (await ask(url, { signal })).json();
}

/** The bytes at a URL and the headers that came with them: {buffer, headers}. */
export async function getBinary(url, { signal } = {}) {
  const response = await ask(url, { signal });
  return { buffer: await response.arrayBuffer(), headers: response.headers };
}

/** The JSON that the server answers to `data`; `token` is what writing to the store needs. */
export async function postJson(url, data, { token, method = "POST", signal } = {}) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers["X-Chgdb-Token"] = token;
  const body = data === undefined ? undefined : JSON.stringify(data);
  const text = await (await ask(url, { method, headers, body, signal })).text();
  return text ? JSON.parse(text) : null;
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style" && typeof value === "object") Object.assign(node.style, value);
    else if (name === "class") node.setAttribute("class", value);
    else if (name in node && !name.includes("-") && node.namespaceURI.endsWith("xhtml")
      && !["list", "form", "role"].includes(name)) node[name] = value;
    else if (value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/**
 * An HTML element: el("button", {class: "primary", onclick: f}, "Open", icon).
 *
 * `onEVENT` listens, `style` may be an object, null and undefined are left out; children are nodes,
 * text (never markup), lists of them, or nothing.
 */
export function el(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

/** One clear line about what failed, to put into the page. */
export function errorPanel(error, ...more) {
  return el("div", { class: "alert bad", role: "alert" }, el("p", {}, error.message ?? String(error)), ...more);
}

/** A formula with its numbers lowered: TiO2 becomes TiO<sub>2</sub>. */
export function formula(text) {
  const parts = String(text ?? "–").split(/([0-9.]+)/);
  return parts.filter(Boolean).map((part) => (/^[0-9.]/.test(part) ? el("sub", {}, part) : part));
}

/** A Hermann-Mauguin symbol as it is printed: "P6_3/mmc", "Fd-3m" with subscript and overbar. */
export function spacegroup(symbol) {
  if (symbol === null || symbol === undefined) return ["–"];
  return [...String(symbol).matchAll(/_(\d)|-(\d)|[^_-]+|./g)].map(([all, low, bar]) => {
    if (low) return el("sub", {}, low);
    return bar ? el("span", { class: "overbar" }, bar) : all;
  });
}

const UNITS = { "A^3": "Å³", "e/A^3": "e/Å³", "g/cm^3": "g/cm³", mu_B: "μB", A: "Å", "A^3/atom": "Å³/atom", 1: "" };

/** A unit of the store as it is printed. */
export function unit(text) {
  return UNITS[text] ?? text ?? "";
}

const DECIMALS = {
  GPa: 1, K: 0, "eV/atom": 3, eV: 2, "A^3": 2, "g/cm^3": 2, "m/s": 0, "W/(m K)": 2, "%": 3, e: 2, mu_B: 2, 1: 3,
};

/** A number of a column as it is printed: digits by its unit, "–" where there is none. */
export function number(value, column) {
  if (value === null || value === undefined) return "–";
  if (column?.type === "integer" || Number.isInteger(value)) {
    if (column?.type !== "real") return String(value).replace("-", "−");
  }
  const decimals = DECIMALS[column?.unit];
  const tiny = value !== 0 && (decimals === undefined || Math.abs(value) < 0.5 * 10 ** -decimals);
  const text = tiny ? shortest(value) : value.toFixed(decimals ?? 0);
  return text.replace(/-/g, "−");
}

function shortest(value) {
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(1);
}

/** `f`, called once `wait` milliseconds passed without another call; `.cancel()` forgets it. */
export function debounced(f, wait) {
  let timer = 0;
  const later = (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...args), wait);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}
