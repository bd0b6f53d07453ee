// One answer from the server, piece by piece: fetch, and the lines of server-sent events.

/** What goes wrong with a request, in the server's own words. */
export class Refused extends Error {}

async function refusal(found) {
  try {
    return new Refused((await found.json()).error.message);
  } catch {
    return new Refused(`the server says ${found.status}`);
  }
}

export function headers(key) {
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

export async function models(key) {
  const found = await fetch("v1/models", { headers: headers(key) });
  if (!found.ok) throw await refusal(found);
  return (await found.json()).data;
}

/** Yields {thought}, {text}, {reason} and {usage}; begins with {seed}. signal stops it. */
export async function* answer(body, key, signal) {
  const found = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers(key),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!found.ok) throw await refusal(found);
  yield { seed: found.headers.get("x-nanollm-seed") };
  const reader = found.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Refused("the connection ended before the answer did");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue; // a comment
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(chunk.error.message);
      if (chunk.usage) yield { usage: chunk.usage };
      const choice = chunk.choices[0];
      if (choice?.delta.reasoning_content) yield { thought: choice.delta.reasoning_content };
      if (choice?.delta.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) yield { reason: choice.finish_reason };
    }
  }
}
