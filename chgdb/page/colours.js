/** Colours: of the elements, of levels, and the maps that turn a number into a colour. */

/** Element symbol, colour (as Jmol draws it) and covalent radius in A (Cordero et al., 2008). */
const ELEMENTS = new Map(`
H ffffff 0.31, He d9ffff 0.28, Li cc80ff 1.28, Be c2ff00 0.96, B ffb5b5 0.84, C 909090 0.76,
N 3050f8 0.71, O ff0d0d 0.66, F 90e050 0.57, Ne b3e3f5 0.58, Na ab5cf2 1.66, Mg 8aff00 1.41,
Al bfa6a6 1.21, Si f0c8a0 1.11, P ff8000 1.07, S ffff30 1.05, Cl 1ff01f 1.02, Ar 80d1e3 1.06,
K 8f40d4 2.03, Ca 3dff00 1.76, Sc e6e6e6 1.70, Ti bfc2c7 1.60, V a6a6ab 1.53, Cr 8a99c7 1.39,
Mn 9c7ac7 1.39, Fe e06633 1.32, Co f090a0 1.26, Ni 50d050 1.24, Cu c88033 1.32, Zn 7d80b0 1.22,
Ga c28f8f 1.22, Ge 668f8f 1.20, As bd80e3 1.19, Se ffa100 1.20, Br a62929 1.20, Kr 5cb8d1 1.16,
Rb 702eb0 2.20, Sr 00ff00 1.95, Y 94ffff 1.90, Zr 94e0e0 1.75, Nb 73c2c9 1.64, Mo 54b5b5 1.54,
Tc 3b9e9e 1.47, Ru 248f8f 1.46, Rh 0a7d8c 1.42, Pd 006985 1.39, Ag c0c0c0 1.45, Cd ffd98f 1.44,
In a67573 1.42, Sn 668080 1.39, Sb 9e63b5 1.39, Te d47a00 1.38, I 940094 1.39, Xe 429eb0 1.40,
Cs 57178f 2.44, Ba 00c900 2.15, La 70d4ff 2.07, Ce ffffc7 2.04, Pr d9ffc7 2.03, Nd c7ffc7 2.01,
Pm a3ffc7 1.99, Sm 8fffc7 1.98, Eu 61ffc7 1.98, Gd 45ffc7 1.96, Tb 30ffc7 1.94, Dy 1fffc7 1.92,
Ho 00ff9c 1.92, Er 00e675 1.89, Tm 00d452 1.90, Yb 00bf38 1.87, Lu 00ab24 1.87, Hf 4dc2ff 1.75,
Ta 4da6ff 1.70, W 2194d6 1.62, Re 267dab 1.51, Os 266696 1.44, Ir 175487 1.41, Pt d0d0e0 1.36,
Au ffd123 1.36, Hg b8b8d0 1.32, Tl a6544d 1.45, Pb 575961 1.46, Bi 9e4fb5 1.48, Po ab5c00 1.40,
At 754f45 1.50, Rn 428296 1.50, Fr 420066 2.60, Ra 007d00 2.21, Ac 70abfa 2.15, Th 00baff 2.06,
Pa 00a1ff 2.00, U 008fff 1.96, Np 0080ff 1.90, Pu 006bff 1.87, Am 545cf2 1.80, Cm 785ce3 1.69`
  .split(",").map((entry) => {
    const [symbol, colour, radius] = entry.trim().split(" ");
    return [symbol, { colour: `#${colour}`, radius: Number(radius) }];
  }));

/** {colour, radius in A} of an element; grey for what is none. */
export function element(symbol) {
  return ELEMENTS.get(symbol) ?? { colour: "#ff69b4", radius: 1.5 };
}

/** Colours of the levels of an isosurface, in the order in which they are added. */
export const LEVEL_COLOURS = ["#e8912d", "#2b7cc9", "#7a5fb8", "#3da577", "#c9485b"];

/** Colours of a difference: more, less. */
export const MORE = "#d1493f";
export const LESS = "#3f62d6";

const VIRIDIS = "440154 481f70 443983 3b528b 31688e 287c8e 21918c 20a486 35b779 5ec962 90d743 c8e020 fde725";
const BLUE_RED = "053061 1c5c9f 3783bb 6bacd1 a7d0e4 d7e8f1 f7f6f6 fcdfcf f7b799 e48066 c94741 a51429 67001f";

/** 256 colours between those of a row, as 32-bit words of an ImageData. */
function table(row) {
  const stops = row.split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, index) => {
    const place = (index / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    const [r, g, b] = stops[low].map((from, i) => Math.round(from + (stops[low + 1][i] - from) * (place - low)));
    return (255 << 24) | (b << 16) | (g << 8) | r;
  });
}

/** Perceptually even, from dark to light (matplotlib's viridis), for densities. */
export const SEQUENTIAL = table(VIRIDIS);

/** From blue over white to red (matplotlib's RdBu, reversed), for differences. */
export const DIVERGING = table(BLUE_RED);

/** A colour of a table as CSS writes it. */
export function css(word) {
  return `rgb(${word & 255} ${(word >> 8) & 255} ${(word >> 16) & 255})`;
}

/**
 * Where a value lies on a scale, 0 to 1.
 *
 * @param {{low: number, high: number, log: boolean}} scale low > 0 where it is logarithmic
 */
export function position(value, { low, high, log }) {
  const place = log ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);
  return place > 0 ? Math.min(place, 1) : 0;
}

/** Round numbers within a scale to write beside it. */
export function ticks({ low, high, log }) {
  if (log) {
    const tens = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      for (const digit of [1, 2, 5]) tens.push(Number(`${digit}e${power}`));
    }
    const within = tens.filter((value) => value >= low * 0.999 && value <= high * 1.001);
    return within.length > 6 ? within.filter((value) => /^1/.test(value.toExponential())) : within;
  }
  const raw = (high - low) / 5.01;
  const ten = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * ten >= raw) * ten;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** A density for people: three digits. */
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  return text.replace(/-/g, "−");
}
