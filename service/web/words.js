/** Numbers of a reply as sentences. */

// Beyond these an answer is more guess than reading.
const MOST_DEGREES = 45;
const MOST_LEANING_DEGREES = 60;
const FEWEST_PIXELS = 40;
const LEAST_SHARPNESS = 0.002;
const LEAST_CONFIDENCE = 0.5;
// Below these a head counts as facing the camera: five landmarks are about 10 degrees off, and a
// mouth moves pitch.
const ABOUT_STRAIGHT = { yaw: 15, pitch: 25, roll: 15 };
const LEAST_SHOWN = 0.001;

const PERCENT = new Intl.NumberFormat("en-GB", { style: "percent", maximumFractionDigits: 1 });

/** "98.1%"; what only rounding would make certain or impossible is not called so. */
export function percent(share) {
  if (share < LEAST_SHOWN) return `<${PERCENT.format(LEAST_SHOWN)}`;
  if (share > 1 - LEAST_SHOWN) return `>${PERCENT.format(1 - LEAST_SHOWN)}`;
  return PERCENT.format(share);
}

/** "−1.52", with a true minus sign. */
export function decimal(number) {
  return number.toFixed(2).replace("-", "−");
}

export function capitalised(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Why the answer for a face should not be trusted, or "" where nothing speaks against it. */
export function warning({ box, head_pose: pose, sharpness, expression }) {
  const reasons = [];
  if (Math.abs(pose.yaw) > MOST_DEGREES) reasons.push("the head is turned far to the side");
  if (Math.abs(pose.pitch) > MOST_DEGREES) {
    reasons.push(`the head is tilted far ${pose.pitch > 0 ? "down" : "up"}`);
  }
  if (Math.abs(pose.roll) > MOST_LEANING_DEGREES) reasons.push("the head leans far");
  const pixels = Math.min(box.x2 - box.x1, box.y2 - box.y1);
  if (pixels < FEWEST_PIXELS) reasons.push(`the face is only ${Math.round(pixels)} pixels wide`);
  if (sharpness < LEAST_SHARPNESS) reasons.push("the face is blurred");
  if (expression.confidence < LEAST_CONFIDENCE) reasons.push("no expression stands out");
  return reasons.length ? `Do not rely on this answer: ${listed(reasons)}.` : "";
}

/** The head pose in words and degrees. */
export function poseInWords({ yaw, pitch, roll }) {
  const turns = [
    turn("yaw", yaw, "turned to your right", "turned to your left"),
    turn("pitch", pitch, "looking down", "looking up"),
    turn("roll", roll, "leaning clockwise", "leaning anticlockwise"),
  ].filter(Boolean);
  return turns.length ? listed(turns) : "facing the camera";
}

/** The head pose in numbers. */
export function poseInDegrees(pose) {
  return ["yaw", "pitch", "roll"].map((axis) => `${axis} ${Math.round(pose[axis])}°`).join(", ")
    .replaceAll("-", "−");
}

/** "in 40 s", "in 5 min", "in 24 h"; never sooner than it is. */
export function later(seconds) {
  if (seconds < 100) return `in ${seconds} s`;
  if (seconds < 100 * 60) return `in ${Math.ceil(seconds / 60)} min`;
  return `in ${Math.ceil(seconds / 3600)} h`;
}

/** A line on all faces of a photo. */
export function summary({ faces, faces_found: found }) {
  if (found === 0) return "No face was found.";
  const names = faces.map(({ expression }) =>
    `${expression.label} ${percent(expression.confidence)}`);
  return `${found === 1 ? "1 face" : `${found} faces`}: ${names.join(", ")}.`;
}

function turn(axis, degrees, positive, negative) {
  if (Math.abs(degrees) < ABOUT_STRAIGHT[axis]) return "";
  return degrees > 0 ? positive : negative;
}

function listed(parts) {
  return parts.length < 2 ? parts.join("")
    : `${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}`;
}
