// What the page asks the server, and nothing else: runs as streams, their numbers as raw bytes, tools as JSON.
//   const { name, layers, heads } = await ask("about")            await ask("tree", { prompt, width, depth })
//   for await (const { word, data } of run(wanted, signal)) ...   wanted null is the example, which is there already
//   const { data, shape, letters, dtype, story } = await values(id, { name, row, from, to })
//   keep(key)                                                     what it sends where the server asks for a key

/** What goes wrong with a request, in the server's own words; status 401 asks for a key. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const KEY = "nanollm.key";
const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given) {
  sessionStorage.setItem(KEY, given);
  history.replaceState(null, "", location.pathname + location.search); // the address bar is shown to others
}

export const keep = (key) => sessionStorage.setItem(KEY, key);

async function request(path, body, signal) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...(body ? { "content-type": "application/json" } : {}), ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let found;
  try {
    found = await fetch(`glass/${path}`, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refused("the server cannot be reached", 0);
  }
  if (found.ok) return found;
  let message = `the server says ${found.status}`;
  try {
    message = (await found.json()).error.message;
  } catch {} // not one of ours
  throw new Refused(message, found.status);
}

export const ask = async (path, body, signal) => (await request(path, body, signal)).json();

export async function* run(wanted, signal) {
  const found = await (wanted ? request("runs", wanted, signal) : request("example", null, signal));
  const reader = found.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("event: ")) continue; // a comment
      const [word, data] = event.slice(7).split("\ndata: ");
      yield { word, data: JSON.parse(data) };
    }
  }
}

export async function values(id, query) {
  const found = await request(`runs/${id}/values?${new URLSearchParams(query)}`);
  const [letters, shape, dtype, story] = ["letters", "shape", "dtype", "story"].map((name) => found.headers.get(`x-${name}`));
  return { data: await found.arrayBuffer(), shape: shape.split(" ").map(Number), letters, dtype, story: Number(story) };
}
