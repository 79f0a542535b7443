/** Asking a person for the API key that the service wants. */

import { useKey } from "./api.js";
import { html } from "./dom.js";

const form = document.getElementById("key-form");
const input = document.getElementById("key");
const trouble = document.getElementById("service-trouble");
let asked = null;

/** Show `reason` and the form; settles once a key was given, whether or not it is the right one. */
export function askForKey(reason) {
  trouble.replaceChildren(html("p", { class: "problem" }, reason));
  if (asked === null) {
    form.hidden = false;
    input.focus();
    asked = new Promise((resolve) => {
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        useKey(input.value.trim());
        input.value = "";
        form.hidden = true;
        trouble.replaceChildren();
        asked = null;
        resolve();
      }, { once: true });
    });
  }
  return asked;
}
