// Asks the plugin's routes. An answer that takes long is asked for again until it is there.
const AGAIN = 400;

export async function get(route, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  const reply = await fetch(new URL(query ? `${route}?${query}` : route, document.baseURI));
  const told = await reply.json();
  if (!reply.ok) throw new Error(told.error || `${route}: ${reply.status}`);
  return told;
}

// The answer and the state of the log it is about; `waiting` is called while there is none, `wanted` says whether to go on.
export async function answer(route, parameters, waiting = () => {}, wanted = () => true) {
  for (;;) {
    const told = await get(route, parameters);
    if (!wanted()) return null;
    if (told.data !== null) {
      if (told.data.error) throw new Error(told.data.error);
      return told;
    }
    waiting();
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
    if (!wanted()) return null;
  }
}
