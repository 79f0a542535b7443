/** Small helpers to make elements. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element. Attributes that are functions become listeners ("onclick"), true becomes an
 * empty attribute, false and null leave it out; children may be strings and are never markup.
 */
export function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element, with attributes and children as in html(). */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Set the text only where it differs, so that a screen reader is not told the same twice. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
