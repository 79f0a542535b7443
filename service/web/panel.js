/** What was read in a face: expression, bars, head pose, and what to lay over the photo. */

import { html, setText } from "./dom.js";
import { capitalised, decimal, percent, poseInDegrees, poseInWords, warning } from "./words.js";

const MAPS = [["none", "Nothing"], ["attention", "Attention"], ["evidence", "Evidence"]];
const LEGENDS = {
  none: "",
  attention: "Attention: where the network looked. That is not yet why: choose Evidence for that.",
};
const ENDS = { attention: ["ignored", "looked at"], evidence: ["against", "for"] };
let panels = 0;

export class Panel {
  #answer = html("p", { class: "answer" });
  #warning = html("p", { class: "warning", hidden: true });
  #faces = html("div", { class: "chips", role: "group", "aria-label": "Faces, largest first" });
  #bars = html("ul", { class: "bars" });
  #pose = html("p", { class: "muted" });
  #legend = html("p", { class: "muted legend" });
  #scale = html("div", { class: "scale", "aria-hidden": "true" },
    html("span"), html("span", { class: "colours" }), html("span"));
  #notes = html("p", { class: "muted" });
  #maps;
  #opacity;
  #slider;
  #choose;

  /** `choose` has face(index), map(kind), label(expression) and opacity(share). */
  constructor(closeUp, choose) {
    this.#choose = choose;
    this.#maps = this.#mapChoice();
    this.#opacity = this.#opacitySlider();
    this.root = html("div", { class: "panel" },
      this.#faces,
      html("div", { class: "headline" }, closeUp, html("div", {}, this.#answer, this.#pose)),
      this.#warning,
      html("div", {}, html("p", { class: "muted" },
        "Probabilities. Choose one to see the evidence for it."), this.#bars),
      this.#maps, this.#opacity,
      html("div", {}, this.#scale, this.#legend), this.#notes);
  }

  /** Show the chosen face of `reply`; `state` has face, map, label and opacity. */
  update(reply, state) {
    const face = reply.faces[state.face];
    setText(this.#notes, reply.notes.join(" "));
    for (const part of this.root.children) part.hidden = !face && !part.contains(this.#answer);
    this.#pose.hidden = !face;
    this.#answer.classList.toggle("none", !face);
    this.#notes.hidden = reply.notes.length === 0;
    this.#updateFaces(reply, state.face);
    if (!face) {
      setText(this.#answer, "No face was found. Faces must be seen from the front or the side, " +
        "and not too small.");
      return;
    }
    const { label, confidence } = face.expression;
    setText(this.#answer, `${capitalised(label)}, ${percent(confidence)}`);
    setText(this.#warning, warning(face));
    this.#warning.hidden = this.#warning.textContent === "";
    setText(this.#pose, `Head: ${poseInWords(face.head_pose)} (${poseInDegrees(face.head_pose)}).`);
    this.#updateBars(face.expression, state);
    this.#updateMap(face, state);
  }

  #updateFaces({ faces }, selected) {
    this.#faces.hidden = faces.length < 2;
    fit(this.#faces, faces.length, (index) => html("button", {
      type: "button", class: "chip", onclick: () => this.#choose.face(index),
    }));
    faces.forEach(({ expression }, index) => {
      const chip = this.#faces.children[index];
      setText(chip, `${index + 1} ${expression.label} ${percent(expression.confidence)}`);
      chip.setAttribute("aria-pressed", String(index === selected));
    });
  }

  #updateBars({ label: best, probabilities }, { map, label }) {
    const entries = Object.entries(probabilities);
    fit(this.#bars, entries.length, (index) => html("li", {}, html("button", {
      type: "button", class: "bar",
      onclick: () => this.#choose.label(this.#bars.children[index].dataset.label),
    }, html("span"), html("span", { class: "track" }, html("span")), html("span"))));
    entries.forEach(([name, share], index) => {
      const row = this.#bars.children[index];
      const [text, track, number] = row.firstChild.children;
      row.dataset.label = name;
      row.classList.toggle("best", name === best);
      row.firstChild.setAttribute("aria-pressed", String(map === "evidence" && name === label));
      setText(text, name);
      track.firstChild.style.width = `${100 * share}%`;
      setText(number, percent(share));
    });
  }

  #updateMap({ evidence }, { map, label, opacity }) {
    for (const input of this.#maps.querySelectorAll("input")) input.checked = input.value === map;
    this.#slider.value = String(Math.round(100 * opacity));
    this.#opacity.hidden = this.#scale.hidden = this.#legend.hidden = map === "none";
    this.#scale.className = `scale ${map}`;
    const [low, high] = ENDS[map] ?? ["", ""];
    setText(this.#scale.firstChild, low);
    setText(this.#scale.lastChild, high);
    setText(this.#legend, LEGENDS[map] ?? evidenceLegend(evidence, label));
  }

  #mapChoice() {
    panels += 1;
    const choices = MAPS.map(([value, text]) => html("label", {}, html("input", {
      type: "radio", name: `map-${panels}`, value, onchange: () => this.#choose.map(value),
    }), text));
    return html("fieldset", {}, html("legend", {}, "Lay over the face"), ...choices);
  }

  #opacitySlider() {
    this.#slider = html("input", {
      type: "range", min: "0", max: "100",
      oninput: () => this.#choose.opacity(Number(this.#slider.value) / 100),
    });
    return html("label", { class: "slider" }, "Opacity", this.#slider);
  }
}

function evidenceLegend(evidence, label) {
  const meaning = `Evidence for ${label}: red speaks for it, blue against.`;
  if (evidence?.class !== label) return `${meaning} Asking for it…`;
  return `${meaning} It adds up to a logit of ${decimal(evidence.logit)}.`;
}

/** Make `parent` have `count` children, so that those that stay keep the focus. */
function fit(parent, count, make) {
  while (parent.children.length > count) parent.lastChild.remove();
  while (parent.children.length < count) parent.append(make(parent.children.length));
}
