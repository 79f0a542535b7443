/** A photo or a video with what was found drawn over it. */

import { html, svg } from "./dom.js";

// Share of the photo's height.
const ROOM_FOR_LABEL = 0.08;

export class Stage {
  #boxes = html("div", { class: "boxes", "aria-hidden": "true" });
  #picture = svg("image", { preserveAspectRatio: "none" });
  #frame = svg("rect", { class: "crop-edge" });
  #points = svg("path", { class: "points" });
  #drawing = svg("svg", { class: "drawing", preserveAspectRatio: "none", "aria-hidden": "true" },
    this.#picture, this.#frame, this.#points);
  #onFace;

  /** `media` is an img or a video; onFace(index) is called when an outline is clicked. */
  constructor(media, onFace) {
    this.#onFace = onFace;
    this.media = media;
    this.root = html("div", { class: "stage" }, media, this.#drawing, this.#boxes);
  }

  /** The upright size in pixels, known before or with the answer. */
  resize(width, height) {
    this.root.style.setProperty("--ratio", String(width / height));
    this.#drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  }

  /** Stand in for a photo that the service can read and this browser cannot show. */
  showUnseen() {
    this.media.replaceWith(html("div", { class: "unseen" },
      "This browser cannot show this kind of picture; the service may still read it."));
  }

  /** Outline the faces of a reply. */
  outline({ faces, image }, selected) {
    this.resize(image.width, image.height);
    while (this.#boxes.children.length > faces.length) this.#boxes.lastChild.remove();
    while (this.#boxes.children.length < faces.length) this.#boxes.append(this.#box());
    faces.forEach((face, index) => place(this.#boxes.children[index], face, {
      image, text: label(face, index, faces.length), selected: index === selected,
    }));
    const points = faces[selected] ? Object.values(faces[selected].landmarks) : [];
    this.#points.setAttribute("d", points.map(([x, y]) => `M${x + 0.5} ${y + 0.5}h0`).join(""));
  }

  /** Lay a picture over the crop of a face; without one, nothing. */
  layOver(heat) {
    this.#drawing.classList.toggle("with-heat", heat !== null);
    if (heat === null) return;
    const transform = `matrix(${heat.matrix.join(" ")})`;
    for (const element of [this.#picture, this.#frame]) {
      element.setAttribute("width", heat.size);
      element.setAttribute("height", heat.size);
      element.setAttribute("transform", transform);
    }
    this.#picture.setAttribute("href", heat.picture.toDataURL());
  }

  /** Opacity of what is laid over, 0 to 1. */
  setOpacity(share) {
    this.#picture.setAttribute("opacity", share);
  }

  #box() {
    const box = html("button", {
      type: "button", tabindex: "-1", class: "box",
      onclick: () => this.#onFace([...this.#boxes.children].indexOf(box)),
    }, html("span"));
    return box;
  }
}

function label({ expression }, index, count) {
  return count > 1 ? `${index + 1} ${expression.label}` : expression.label;
}

function place(element, { box }, { image, text, selected }) {
  const across = (x) => `${(100 * x) / image.width}%`;
  const down = (y) => `${(100 * y) / image.height}%`;
  Object.assign(element.style, {
    left: across(box.x1), top: down(box.y1),
    width: across(box.x2 - box.x1), height: down(box.y2 - box.y1),
  });
  element.classList.toggle("selected", selected);
  element.classList.toggle("at-top", box.y1 < ROOM_FOR_LABEL * image.height);
  element.firstChild.textContent = text;
}
