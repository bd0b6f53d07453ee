// The report: the story stands in the page itself.

import { decode } from "./story.js";
import { tell } from "./tell.js";

tell(document.querySelector("main"), decode(JSON.parse(document.getElementById("story").textContent)));
