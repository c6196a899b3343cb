// The losses of several runs in one picture.
const S = globalThis.Stabkit;

export const MOST = S.curves.most;

// `runs`: [{name, line}] with the shown run first; a line is one of the timeline's.
export const compare = (holder, runs) => S.curves(holder, { title: "Loss of the chosen runs", runs });
