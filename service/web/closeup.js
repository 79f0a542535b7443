/** The chosen face as the network sees it: upright, aligned, with the map on it. */

import { html } from "./dom.js";
import { undone } from "./geometry.js";

const SIDE = 224; // twice what is shown, for fine screens

export class CloseUp {
  #media;
  #shown = null;
  #opacity = 1;
  // role and label: a canvas has no text of its own.
  root = html("canvas", {
    class: "close-up", width: SIDE, height: SIDE, hidden: true, role: "img",
    "aria-label": "The face as the network sees it, with the map on it",
  });

  /** `media` is the img or video that the face is in. */
  constructor(media) {
    this.#media = media;
    media.addEventListener("load", () => this.#draw());
  }

  /**
   * `face` has matrix (crop to photo), size (of the crop), photo (width and height) and picture
   * (a canvas over the crop, or null); null hides the close-up.
   */
  show(face) {
    this.#shown = face;
    this.#draw();
  }

  /** Opacity of the map, 0 to 1. */
  setOpacity(share) {
    this.#opacity = share;
    this.#draw();
  }

  #draw() {
    const face = this.#shown;
    this.root.hidden = !face || !this.#drawable();
    if (this.root.hidden) return;
    const context = this.root.getContext("2d");
    const scale = SIDE / face.size;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, SIDE, SIDE);
    context.globalAlpha = 1;
    context.imageSmoothingQuality = "high";
    context.setTransform(...undone(face.matrix).map((number) => number * scale));
    context.drawImage(this.#media, 0, 0, face.photo.width, face.photo.height);
    if (!face.picture) return;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = this.#opacity;
    context.drawImage(face.picture, 0, 0, SIDE, SIDE);
  }

  #drawable() {
    return this.#media instanceof HTMLVideoElement || this.#media.naturalWidth > 0;
  }
}
