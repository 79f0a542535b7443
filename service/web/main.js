/** The page: takes photos in, and puts a card on it for each. */

import { describeModel } from "./api.js";
import { html } from "./dom.js";
import { askForKey } from "./key.js";
import { patiently } from "./patience.js";
import { PhotoCard } from "./photo.js";
import { openCamera, WebcamCard } from "./webcam.js";

const at = (id) => document.getElementById(id);
const cards = [];
// Between questions to a service that does not say when to ask again.
const PAUSE_S = 3;
const progress = { done: 0, asked: 0 };
let turn = Promise.resolve();
const model = askUntilTold();

const page = {
  /**
   * Run `work` when all before it is done: the service gets one photo of this page at a time.
   * tell(text) hears why it is tried again, where it is.
   */
  queue(work, tell) {
    const result = turn.then(() => patiently(work, tell));
    turn = result.catch(() => {});
    return result;
  },

  /** The contract of the expression network, once the service has told it. */
  async contract() {
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

function complain(text, place = "trouble") {
  if (at(place).textContent === text) return; // a screen reader need not say it again
  at(place).replaceChildren(html("p", { class: "problem" }, text));
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

/** The reply of GET /model, however long the service takes to start or somebody to give a key. */
async function askUntilTold() {
  for (;;) {
    try {
      const told = await describeModel();
      at("service-trouble").replaceChildren();
      const { classifier } = told;
      at("model").textContent = `Network: ${classifier.name}. Licence: ${classifier.licence}.`;
      return told;
    } catch (error) {
      if (error.needsKey) await askForKey(error.message);
      else await sayAndWait(error);
    }
  }
}

async function sayAndWait(error) {
  const seconds = error.retryAfter ?? PAUSE_S;
  complain(`${error.message} Trying again in ${seconds} s.`, "service-trouble");
  await new Promise((resolve) => { setTimeout(resolve, 1000 * seconds); });
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
