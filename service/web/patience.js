/** Trying again where the service says that it helps. */

import { askForKey } from "./key.js";

const MOST_WAITS = 5;
const LONGEST_WAIT_S = 30;

/**
 * The result of `work`. Where the service is busy it is run again after the time that the service
 * names, a few times; where it wants an API key, once there is one. tell(text) says why. Throws
 * what `work` throws in the end.
 */
export async function patiently(work, tell) {
  for (let waits = 0; ;) {
    try {
      return await work();
    } catch (error) {
      if (error.needsKey) {
        tell("Waiting for an API key…");
        await askForKey(error.message);
      } else {
        waits += 1;
        const seconds = error.retryAfter;
        if (!seconds || seconds > LONGEST_WAIT_S || waits > MOST_WAITS) throw error;
        tell(`${error.message} Trying again in ${seconds} s.`);
        await new Promise((resolve) => { setTimeout(resolve, 1000 * seconds); });
      }
    }
  }
}
