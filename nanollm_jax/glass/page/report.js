// The report: the story stands in the page itself.

import { decode } from "./story.js";
import { tell } from "./tell.js";

const told = tell(document.querySelector("main"), decode(JSON.parse(document.getElementById("story").textContent)));
document.body.onkeydown = (event) => event.target === document.body && told.onkey(event);
