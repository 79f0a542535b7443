/** Where the aligned crop lies on the photo. */

const LANDMARKS = ["left_eye", "right_eye", "nose", "mouth_left", "mouth_right"];
// The service gives the centre of the first pixel as 0, SVG its edge.
const HALF_PIXEL = 0.5;

/**
 * The similarity from crop to photo as the six numbers of an SVG matrix, or null where the
 * landmarks coincide. It undoes the least-squares fit by which the service cuts its crop: five
 * landmarks of the photo onto the five points of `template`.
 */
export function cropToPhoto(landmarks, template) {
  const points = LANDMARKS.map((name) => landmarks[name]).map(shifted);
  const fit = similarity(points, template.map(shifted));
  return fit && inverse(fit);
}

function shifted([x, y]) {
  return [x + HALF_PIXEL, y + HALF_PIXEL];
}

/** x' = a x - b y + e, y' = b x + a y + f: closest to `targets` from `points`. */
function similarity(points, targets) {
  const [px, py] = mean(points);
  const [tx, ty] = mean(targets);
  let variance = 0;
  let cosine = 0;
  let sine = 0;
  points.forEach(([x, y], i) => {
    const [dx, dy, gx, gy] = [x - px, y - py, targets[i][0] - tx, targets[i][1] - ty];
    variance += dx * dx + dy * dy;
    cosine += dx * gx + dy * gy;
    sine += dx * gy - dy * gx;
  });
  if (!(variance > 1e-9) || cosine * cosine + sine * sine < 1e-18) return null;
  const [a, b] = [cosine / variance, sine / variance];
  return { a, b, e: tx - a * px + b * py, f: ty - b * px - a * py };
}

/** The similarity that undoes `matrix`, both as the six numbers of an SVG matrix. */
export function undone([a, b, , , e, f]) {
  return inverse({ a, b, e, f });
}

function inverse({ a, b, e, f }) {
  const square = a * a + b * b;
  const [c, s] = [a / square, -b / square];
  return [c, s, -s, c, -(c * e - s * f), -(s * e + c * f)];
}

function mean(points) {
  return [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
}
