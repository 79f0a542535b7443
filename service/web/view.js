/** A photo or video, what was read in it, and the JSON it came from. */

import { curlLine, prettyJson } from "./api.js";
import { CloseUp } from "./closeup.js";
import { html, setText } from "./dom.js";
import { cropToPhoto } from "./geometry.js";
import { heatPicture } from "./heat.js";
import { Panel } from "./panel.js";
import { Stage } from "./stage.js";

export class ResultView {
  #contract = null;
  #onAsk;
  #panel;
  #reply = null;
  #name;
  #closeUp;
  #curl = html("code");
  #json = html("code");
  #details;
  // label: the expression whose evidence was chosen; null means that of each face.
  #state = { face: 0, map: "attention", label: null, opacity: 0.8 };

  /** onAsk(options) is called when what is to be seen needs an answer to other options. */
  constructor(media, name, onAsk) {
    this.#name = name;
    this.#onAsk = onAsk;
    this.stage = new Stage(media, (face) => this.#choose({ face }));
    this.#closeUp = new CloseUp(media);
    this.#panel = new Panel(this.#closeUp.root, {
      face: (face) => this.#choose({ face }),
      map: (map) => this.#choose({ map, label: null }),
      label: (label) => this.#choose({ map: "evidence", label }),
      opacity: (opacity) => this.#setOpacity(opacity),
    });
    this.#details = html("details", { ontoggle: () => this.#writeSource() },
      html("summary", {}, "JSON and curl"),
      block("The same answer in a shell", this.#curl),
      block("The answer", this.#json));
    this.root = html("div", { class: "view" }, this.stage.root);
  }

  /** The query parameters that what is to be seen needs. */
  get options() {
    return this.#state.map === "evidence" ? { explain: "evidence", class: this.#label } : {};
  }

  /** Show an answer; `contract` is the network's, of GET /model. */
  show(reply, contract) {
    this.#reply = reply;
    this.#contract = contract;
    this.#state.face = Math.max(0, Math.min(this.#state.face, reply.faces.length - 1));
    if (!this.#panel.root.isConnected) this.root.append(this.#panel.root, this.#details);
    this.#setOpacity(this.#state.opacity);
    this.#draw();
  }

  get #label() {
    return this.#state.label ?? this.#reply.faces[this.#state.face].expression.label;
  }

  #choose(changes) {
    Object.assign(this.#state, changes);
    this.#draw();
    this.#onAsk(this.options);
  }

  #setOpacity(opacity) {
    this.#state.opacity = opacity;
    this.stage.setOpacity(opacity);
    this.#closeUp.setOpacity(opacity);
  }

  #draw() {
    const { face: index, map } = this.#state;
    const face = this.#reply.faces[index];
    const label = face && map === "evidence" ? this.#label : null;
    this.#panel.update(this.#reply, { ...this.#state, label });
    this.stage.outline(this.#reply, index);
    const matrix = face ? cropToPhoto(face.landmarks, this.#contract.template) : null;
    const size = this.#contract.input_size;
    const picture = matrix && this.#heat(face);
    this.stage.layOver(picture && { matrix, size, picture });
    this.#closeUp.show(matrix && { matrix, size, picture, photo: this.#reply.image });
    this.#writeSource();
  }

  #heat(face) {
    const signed = this.#state.map === "evidence";
    const shown = signed ? face.evidence : face.attention;
    const other = signed && shown?.class !== this.#label;
    if (this.#state.map === "none" || other) return null;
    return heatPicture(shown.grid, { signed });
  }

  #writeSource() {
    if (!this.#details.open) return;
    // Of the answer that is there, which may lag behind what was asked for.
    const evidence = this.#reply.faces[this.#state.face]?.evidence;
    const options = evidence ? { explain: "evidence", class: evidence.class } : {};
    setText(this.#curl, curlLine(this.#name, options));
    setText(this.#json, prettyJson(this.#reply));
  }
}

function block(title, code) {
  const copy = html("button", {
    type: "button", class: "button small", "aria-label": `Copy: ${title}`,
    onclick: async () => {
      copy.textContent = await copied(code.textContent) ? "Copied" : "Select and copy by hand";
    },
  }, "Copy");
  return html("section", {}, html("h4", {}, title), copy,
    html("pre", { tabindex: "0", role: "region", "aria-label": title }, code));
}

/** Whether the text went to the clipboard; only secure pages have one. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
