/** A grid of attention or evidence as a picture: smooth, coloured, clear where there is nothing. */

const SIZE = 112;
// Inferno: its lightness grows evenly. Evidence: blue against, red for.
const SEQUENTIAL = ["000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06",
  "f7d13d", "fcffa4"].map(rgb);
const DIVERGING = ["1848b0", "6ea0e6", "f5f5f5", "eb8269", "a81024"].map(rgb);

/** A square canvas with `grid` (rows of numbers) on it; opacity grows with magnitude. */
export function heatPicture(grid, { signed }) {
  const values = normalised(grid, signed);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIZE;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(SIZE, SIZE);
  const columns = weights(values[0].length);
  const rows = weights(values.length);
  for (let y = 0, at = 0; y < SIZE; y += 1) {
    for (let x = 0; x < SIZE; x += 1, at += 4) {
      const value = blend(values, rows[y], columns[x]);
      const colour = signed ? colourAt(DIVERGING, (value + 1) / 2) : colourAt(SEQUENTIAL, value);
      picture.data.set([...colour, 255 * Math.min(1, Math.abs(value))], at);
    }
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

/** Attention clipped to 0..1; evidence divided by its largest magnitude. */
function normalised(grid, signed) {
  if (!signed) return grid.map((row) => row.map((value) => Math.min(1, Math.max(0, value))));
  const peak = Math.max(...grid.flat().map(Math.abs)) || 1;
  return grid.map((row) => row.map((value) => value / peak));
}

/** For each pixel: the two cells it lies between, and how far it is on the way. */
function weights(cells) {
  return Array.from({ length: SIZE }, (_, pixel) => {
    const place = Math.min(cells - 1, Math.max(0, ((pixel + 0.5) * cells) / SIZE - 0.5));
    const low = Math.min(cells - 2, Math.floor(place));
    const way = place - low;
    return [low, way * way * (3 - 2 * way)];
  });
}

function blend(values, [row, down], [column, right]) {
  const across = (line) => line[column] * (1 - right) + line[column + 1] * right;
  return across(values[row]) * (1 - down) + across(values[row + 1]) * down;
}

function colourAt(stops, level) {
  const place = Math.min(1, Math.max(0, level)) * (stops.length - 1);
  const low = Math.min(stops.length - 2, Math.floor(place));
  return stops[low].map((from, i) => from + (stops[low + 1][i] - from) * (place - low));
}

function rgb(hex) {
  return [0, 2, 4].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
}
