/** Isosurfaces of a periodic field: naive surface nets, cut at the faces of the cell. */

/**
 * The surface where a periodic field crosses a level.
 *
 * Naive surface nets (Gibson, 1998): one vertex in every box of the grid that the surface crosses,
 * at the mean of the crossings of its edges (by linear interpolation), and one quadrilateral for
 * every crossed edge of the grid. Boxes beyond the cell take part, and what reaches beyond is cut
 * off at the faces of the cell, so that the surface ends there and joins that of the next cell.
 *
 * @param {Float32Array} values shape `grid`, C order, not repeated at the boundary
 * @param {number[]} grid points along a, b and c
 * @param {number} level
 * @returns {{places: number[][], normals: number[][], faces: number[]}} fractional coordinates in
 *   [0, 1]; the fractional gradient there (unscaled); three indices per triangle, its front on the
 *   side where the field is smaller (in a right-handed cell)
 */
export function isosurface(values, grid, level) {
  const [na, nb, nc] = grid;
  const closed = close(values, grid);
  const [sa, sb] = [(nb + 3) * (nc + 3), nc + 3];
  const vertexOf = new Int32Array(closed.length).fill(-1);
  const corners = [0, 1, sb, sb + 1, sa, sa + 1, sa + sb, sa + sb + 1];
  const places = [];
  const normals = [];
  const faces = [];
  const gradient = (at, step) => closed[at + step] - closed[at];

  // boxes -1 ... n along each axis; box (i, j, k) has its first corner at index (i+1, j+1, k+1)
  for (let i = 0; i <= na + 1; i += 1) {
    for (let j = 0; j <= nb + 1; j += 1) {
      for (let k = 0; k <= nc + 1; k += 1) {
        const at = i * sa + j * sb + k;
        let inside = 0;
        for (let corner = 0; corner < 8; corner += 1) if (closed[at + corners[corner]] > level) inside |= 1 << corner;
        if (inside === 0 || inside === 255) continue;
        let [x, y, z, crossings] = [0, 0, 0, 0];
        for (const [from, to] of EDGES) {
          if (((inside >> from) & 1) === ((inside >> to) & 1)) continue;
          const low = closed[at + corners[from]];
          const t = (level - low) / (closed[at + corners[to]] - low);
          const step = to - from;
          x += (from >> 2) + (step === 4 ? t : 0);
          y += ((from >> 1) & 1) + (step === 2 ? t : 0);
          z += (from & 1) + (step === 1 ? t : 0);
          crossings += 1;
        }
        [x, y, z] = [x / crossings, y / crossings, z / crossings];
        vertexOf[at] = places.length;
        places.push([(i - 1 + x) / na, (j - 1 + y) / nb, (k - 1 + z) / nc]);
        // the gradient of the trilinear field in the box
        const [x1, y1, z1] = [1 - x, 1 - y, 1 - z];
        normals.push([
          na * ((gradient(at, sa) * z1 + gradient(at + 1, sa) * z) * y1 + (gradient(at + sb, sa) * z1 + gradient(at + sb + 1, sa) * z) * y),
          nb * ((gradient(at, sb) * z1 + gradient(at + 1, sb) * z) * x1 + (gradient(at + sa, sb) * z1 + gradient(at + sa + 1, sb) * z) * x),
          nc * ((gradient(at, 1) * y1 + gradient(at + sb, 1) * y) * x1 + (gradient(at + sa, 1) * y1 + gradient(at + sa + sb, 1) * y) * x),
        ]);
      }
    }
  }

  const quad = (at, step, s, t) => {
    const low = closed[at] > level;
    if (low === closed[at + step] > level) return;
    const [p, q, r, o] = [vertexOf[at - s - t], vertexOf[at - t], vertexOf[at], vertexOf[at - s]];
    let polygon = low ? [p, q, r, o] : [p, o, r, q];
    if (polygon.some((vertex) => places[vertex].some((x) => x < 0 || x > 1))) polygon = cut(polygon, places, normals);
    for (let i = 2; i < polygon.length; i += 1) faces.push(polygon[0], polygon[i - 1], polygon[i]);
  };
  for (let i = 1; i <= na + 1; i += 1) {
    for (let j = 1; j <= nb + 1; j += 1) {
      for (let k = 1; k <= nc + 1; k += 1) {
        const at = i * sa + j * sb + k;
        if (i <= na) quad(at, sa, sb, 1);
        if (j <= nb) quad(at, sb, 1, sa);
        if (k <= nc) quad(at, 1, sa, sb);
      }
    }
  }
  return { places, normals, faces };
}

/** The edges of a box, between corners whose bits say a, b, c (4, 2, 1). */
const EDGES = [[0, 1], [2, 3], [4, 5], [6, 7], [0, 2], [1, 3], [4, 6], [5, 7], [0, 4], [1, 5], [2, 6], [3, 7]];

/** The part of a polygon in the cell (Sutherland and Hodgman, 1974); appends the new vertices. */
function cut(polygon, places, normals) {
  let kept = polygon;
  for (let axis = 0; axis < 3; axis += 1) {
    for (const face of [0, 1]) {
      const depth = (vertex) => (face ? 1 - places[vertex][axis] : places[vertex][axis]);
      const next = [];
      kept.forEach((vertex, index) => {
        const before = kept[(index + kept.length - 1) % kept.length];
        const [from, to] = [depth(before), depth(vertex)];
        if (from < 0 !== to < 0) {
          const t = from / (from - to);
          const between = (rows) => rows[before].map((x, i) => x + t * (rows[vertex][i] - x));
          const place = between(places);
          place[axis] = face;
          next.push(places.length);
          normals.push(between(normals));
          places.push(place);
        }
        if (to >= 0) next.push(vertex);
      });
      kept = next;
    }
  }
  return kept;
}

/** The field on points -1 ... n+1 of every axis: shape n+3, the periodic images appended. */
function close(values, [na, nb, nc]) {
  const closed = new Float32Array((na + 3) * (nb + 3) * (nc + 3));
  let to = 0;
  for (let i = -1; i <= na + 1; i += 1) {
    for (let j = -1; j <= nb + 1; j += 1) {
      const from = (((i + na) % na) * nb + ((j + nb) % nb)) * nc;
      closed[to] = values[from + nc - 1];
      closed.set(values.subarray(from, from + nc), to + 1);
      closed[to + nc + 1] = values[from];
      closed[to + nc + 2] = values[from + 1 % nc];
      to += nc + 3;
    }
  }
  return closed;
}
