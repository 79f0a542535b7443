/** The page: takes photos in, and puts a card on it for each. */

import { describeModel } from "./api.js";
import { html } from "./dom.js";
import { PhotoCard } from "./photo.js";
import { openCamera, WebcamCard } from "./webcam.js";

const at = (id) => document.getElementById(id);
const cards = [];
const progress = { done: 0, asked: 0 };
let turn = Promise.resolve();
let model = null;

const page = {
  /** Run `work` when all before it is done: the service gets one photo of this page at a time. */
  queue(work) {
    const result = turn.then(work);
    turn = result.catch(() => {});
    return result;
  },

  /** The contract of the expression network, asked for once. Rejects with Trouble. */
  async contract() {
    model ??= describeModel().catch((error) => {
      model = null;
      throw error;
    });
    return (await model).classifier.contract;
  },

  say(text) {
    at("status").textContent = text;
  },

  removed(card) {
    const index = cards.indexOf(card);
    cards.splice(index, 1);
    card.root.remove();
    // Without this the focus would fall back to the top of the page.
    (cards[index] ?? cards[index - 1] ?? { focus: () => at("pick").focus() }).focus();
    at("results").classList.toggle("several", cards.length > 1);
    at("webcam").disabled = cards.some((other) => other instanceof WebcamCard);
  },
};

function show(card) {
  cards.push(card);
  at("results").append(card.root);
  at("results").classList.toggle("several", cards.length > 1);
  return card.start();
}

async function take(files) {
  at("trouble").replaceChildren();
  progress.asked += files.length;
  showProgress();
  await Promise.all(files.map(async (file) => {
    await show(new PhotoCard(file, page));
    progress.done += 1;
    showProgress();
  }));
}

function showProgress() {
  const { done, asked } = progress;
  at("progress").hidden = done === asked;
  at("progress-text").textContent =
    asked === 1 ? "Reading the photo" : `Read ${done} of ${asked} photos`;
  at("bar").max = asked;
  // A lone photo has no steps to count: the bar runs without a value.
  if (asked === 1) at("bar").removeAttribute("value");
  else at("bar").value = done;
  if (done === asked) Object.assign(progress, { done: 0, asked: 0 });
}

function complain(text) {
  if (at("trouble").textContent === text) return; // a screen reader need not say it again
  at("trouble").replaceChildren(html("p", { class: "problem" }, text));
}

function takeTransfer(event) {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const transfer = event.dataTransfer ?? event.clipboardData;
  const files = [...transfer.files];
  if (files.length) take(files);
  else complain("There was no photo in it. Addresses of pictures are not fetched: save the picture first.");
}

async function startWebcam() {
  at("trouble").replaceChildren();
  at("webcam").disabled = true;
  try {
    const card = new WebcamCard(await openCamera(), page);
    const running = show(card);
    card.focus();
    await running;
  } catch (error) {
    at("webcam").disabled = false;
    complain(error.message);
  }
}

async function nameModel() {
  try {
    await page.contract();
    const { classifier } = await model;
    at("model").textContent = `Network: ${classifier.name}. Licence: ${classifier.licence}.`;
    at("trouble").replaceChildren();
  } catch (error) {
    complain(error.message);
    if (error.retryAfter) setTimeout(nameModel, 1000 * error.retryAfter);
  }
}

at("pick").addEventListener("change", ({ target }) => {
  take([...target.files]);
  target.value = ""; // so that the same photo can be chosen again
});
at("webcam").addEventListener("click", startWebcam);
document.addEventListener("paste", takeTransfer);
document.addEventListener("drop", takeTransfer);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (relatedTarget === null) document.body.classList.remove("dragging");
});
nameModel();
