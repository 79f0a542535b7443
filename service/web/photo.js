/** The card of one photo: it asks the service, keeps the answers and shows them. */

import { predict } from "./api.js";
import { html } from "./dom.js";
import { later, summary } from "./words.js";
import { ResultView } from "./view.js";

export class PhotoCard {
  #photo;
  #page;
  #image;
  #answers = new Map();
  #stopping = new AbortController();
  #view;
  #trouble = html("div", { role: "alert" });
  #state = html("p", { class: "muted waiting" }, "Waiting for its turn…");
  #remove;
  #address;

  /** `page` has queue(work, tell), contract(), say(text) and removed(card). */
  constructor(photo, page) {
    this.#photo = photo;
    this.#page = page;
    this.#address = URL.createObjectURL(photo);
    this.#image = html("img", {
      src: this.#address, alt: photo.name,
      onload: () => this.#view.stage.resize(this.#image.naturalWidth, this.#image.naturalHeight),
      onerror: () => this.#view.stage.showUnseen(),
    });
    this.#view = new ResultView(this.#image, photo.name, () => this.#ask());
    this.#remove = html("button", {
      type: "button", class: "button small", "aria-label": `Remove ${photo.name}`,
      onclick: () => this.#close(),
    }, "Remove");
    this.root = html("article", { class: "card", "aria-label": photo.name },
      html("div", { class: "card-head" }, html("h3", {}, photo.name), this.#remove),
      this.#trouble, this.#state, this.#view.root);
  }

  /** Ask for what is first to be seen. */
  async start() {
    const reply = await this.#ask();
    if (!reply) return;
    this.#image.alt = `${this.#photo.name}. ${summary(reply)}`;
    this.#page.say(`${this.#photo.name}: ${summary(reply)}`);
  }

  focus() {
    this.#remove.focus();
  }

  async #ask() {
    const options = this.#view.options;
    const key = JSON.stringify(options);
    try {
      const contract = await this.#page.contract();
      this.#answers.set(key, this.#answers.get(key) ?? await this.#read(options));
      this.#trouble.replaceChildren();
      this.root.classList.remove("refused");
      if (key === JSON.stringify(this.#view.options)) {
        this.#view.show(this.#answers.get(key), contract);
      }
      return this.#answers.get(key);
    } catch (error) {
      if (error.name !== "AbortError") this.#tell(error);
      return null;
    } finally {
      this.#state.hidden = true;
      this.root.removeAttribute("aria-busy");
    }
  }

  #read(options) {
    this.root.setAttribute("aria-busy", "true");
    return this.#page.queue(() => {
      this.#stopping.signal.throwIfAborted();
      this.#wait("Reading…");
      return predict(this.#photo, options, this.#stopping.signal);
    }, (text) => this.#wait(text));
  }

  #wait(text) {
    this.#state.textContent = text;
    this.#state.hidden = false;
  }

  #tell(error) {
    const again = html("button", {
      type: "button", class: "button small",
      onclick: () => {
        this.#trouble.replaceChildren();
        this.start();
      },
    }, "Try again");
    this.root.classList.toggle("refused", !error.passing && !this.#answers.size);
    const when = error.retryAfter ? ` It may work ${later(error.retryAfter)}.` : "";
    this.#trouble.replaceChildren(html("div", { class: "problem" },
      html("p", {}, error.message + when), ...(error.passing ? [again] : [])));
  }

  #close() {
    this.#stopping.abort();
    URL.revokeObjectURL(this.#address);
    this.#page.removed(this);
  }
}
