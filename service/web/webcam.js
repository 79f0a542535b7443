/** The card of the webcam: a few frames a second, one at a time. */

import { predict, Trouble } from "./api.js";
import { html, setText } from "./dom.js";
import { ResultView } from "./view.js";

const NAME = "frame.jpg";
const LONGEST_SIDE = 640;
const JPEG_QUALITY = 0.85;
// At most five frames a second, and none while the last one is not answered.
const SHORTEST_PERIOD_MS = 200;
const PAUSE_AFTER_TROUBLE_S = 2;
const CAMERA_TROUBLES = {
  NotAllowedError: "The browser was not allowed to use the camera.",
  NotFoundError: "No camera was found.",
  NotReadableError: "The camera cannot be used; another program may have it.",
};

/** The camera's stream. Throws Trouble. */
export async function openCamera() {
  if (!navigator.mediaDevices) {
    throw new Trouble("The browser gives the camera only to pages on https or localhost.");
  }
  try {
    const video = { width: { ideal: LONGEST_SIDE }, facingMode: "user" };
    return await navigator.mediaDevices.getUserMedia({ video, audio: false });
  } catch (error) {
    throw new Trouble(CAMERA_TROUBLES[error.name] ?? `The camera failed: ${error.message}`);
  }
}

export class WebcamCard {
  #stream;
  #page;
  #canvas = document.createElement("canvas");
  #stopping = new AbortController();
  #trouble = html("div", { role: "alert" });
  #pace = html("span", { class: "muted" });
  #video = html("video", { muted: true, playsinline: true, "aria-label": "Webcam" });
  #view = new ResultView(this.#video, NAME, () => {});
  #stop = html("button", {
    type: "button", class: "button small", onclick: () => this.stop(),
  }, "Stop the webcam");

  /** `page` as for a PhotoCard. */
  constructor(stream, page) {
    this.#stream = stream;
    this.#page = page;
    this.#video.muted = true;
    this.#video.srcObject = stream;
    stream.getVideoTracks()[0].addEventListener("ended", () => this.stop());
    this.root = html("article", { class: "card live", "aria-label": "Webcam" },
      html("div", { class: "card-head" }, html("h3", {}, "Webcam"), this.#pace, this.#stop),
      this.#trouble, this.#view.root);
  }

  /** Read frames until stop() is called. */
  async start() {
    await this.#video.play();
    this.#view.stage.resize(this.#video.videoWidth, this.#video.videoHeight);
    this.#page.say("The webcam is on.");
    while (!this.#stopping.signal.aborted) {
      const started = performance.now();
      const pause = document.hidden ? 0 : await this.#readFrame();
      await sleep(Math.max(1000 * pause, SHORTEST_PERIOD_MS - (performance.now() - started)));
      if (!document.hidden) this.#showPace(performance.now() - started);
    }
  }

  focus() {
    this.#stop.focus();
  }

  stop() {
    if (this.#stopping.signal.aborted) return;
    this.#stopping.abort();
    for (const track of this.#stream.getTracks()) track.stop();
    this.#page.say("The webcam is off.");
    this.#page.removed(this);
  }

  /** Seconds to wait before the next frame. */
  async #readFrame() {
    try {
      const contract = await this.#page.contract();
      const reply = await this.#page.queue(async () => {
        const frame = await this.#frame();
        return predict(frame, this.#view.options, this.#stopping.signal);
      }, (text) => this.#tell(text));
      this.#trouble.replaceChildren();
      this.#view.show(reply, contract);
      return 0;
    } catch (error) {
      if (error.name === "AbortError") return 0;
      this.#tell(error.message);
      return error.retryAfter ?? PAUSE_AFTER_TROUBLE_S;
    }
  }

  #tell(text) {
    if (this.#trouble.textContent === text) return; // a screen reader need not say it again
    this.#trouble.replaceChildren(html("p", { class: "problem" }, text));
  }

  async #frame() {
    const { videoWidth: width, videoHeight: height } = this.#video;
    const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
    this.#canvas.width = Math.round(width * scale);
    this.#canvas.height = Math.round(height * scale);
    const { width: across, height: down } = this.#canvas;
    this.#canvas.getContext("2d").drawImage(this.#video, 0, 0, across, down);
    const blob = await new Promise((resolve) => {
      this.#canvas.toBlob(resolve, "image/jpeg", JPEG_QUALITY);
    });
    return new File([blob], NAME, { type: "image/jpeg" });
  }

  #showPace(milliseconds) {
    setText(this.#pace, `${(1000 / milliseconds).toFixed(1)} frames a second`);
  }
}

function sleep(milliseconds) {
  return new Promise((resolve) => { setTimeout(resolve, milliseconds); });
}
