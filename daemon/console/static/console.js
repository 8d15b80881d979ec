"use strict";
// Reloads the live part of a page when the daemon has a newer snapshot. All tabs share one stream, and only those that
// can be seen reload; a hidden one does so when it is shown.
const live = () => document.querySelector("[data-live]");
if (live() && window.SharedWorker) {
  let isStale = false;
  // What a person is in the middle of is not replaced: a form that is open, or what has the focus.
  const isInUse = () => live().contains(document.activeElement) || live().querySelector("details[open] form");
  const reload = () => {
    if (!isStale || !live() || document.hidden || isInUse()) return;
    isStale = false;
    htmx.ajax("GET", location.pathname + location.search, { target: "#live", select: "#live", swap: "outerHTML" });
  };
  new BroadcastChannel("retuned").onmessage = ({ data }) => {
    document.querySelector("[data-lost]").hidden = data !== "lost";
    isStale = data !== "lost";
    reload();
  };
  document.addEventListener("visibilitychange", reload);
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (!isInUse()) return; // it may have begun to be while the answer was on its way
    event.detail.shouldSwap = false;
    isStale = true;
  });
  new SharedWorker("/static/stream.js");
}
// A link for an expert ends in #token: what follows # is sent to no server and stands in no log.
const signIn = document.querySelector("[data-sign-in]");
if (signIn && location.hash.length > 1) {
  signIn.elements.token.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname + location.search);
  signIn.requestSubmit();
}
// Teaching by keyboard: 1, 2, 3 choose, S skips, Ctrl+Enter saves; a wrong answer is edited in place and compared.
const teach = document.querySelector("[data-teach]");
if (teach) {
  const text = teach.querySelector("textarea");
  const choices = [...teach.querySelectorAll("[name=verdict]")];
  const words = (value) => value.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || [];
  const show = () => {
    const out = teach.querySelector("[data-diff]");
    if (!text || !out) return;
    const a = words(text.dataset.original), b = words(text.value);
    if (!text.dataset.original || a.length * b.length > 4e6 || text.dataset.original === text.value) return out.replaceChildren();
    // Longest common subsequence, from the end.
    const best = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    const parts = [], add = (kind, word) => {
      if (!parts.length || parts[parts.length - 1][0] !== kind) parts.push([kind, ""]);
      parts[parts.length - 1][1] += word;
    };
    for (let i = 0, j = 0; i < a.length || j < b.length; ) {
      if (i < a.length && j < b.length && a[i] === b[j]) { add("span", a[i++]); j++; }
      else if (j >= b.length || (i < a.length && best[i + 1][j] >= best[i][j + 1])) add("del", a[i++]);
      else add("ins", b[j++]);
    }
    out.replaceChildren("Changed: ", ...parts.map(([kind, word]) => Object.assign(document.createElement(kind), { textContent: word })));
  };
  // Only a correction has a text of its own; what was typed comes back with it.
  let typed = null, isSent = false;
  const chosen = (input) => {
    if (!text) return;
    if (input.value === "correction") text.value = typed ?? text.value;
    else if (text.value !== text.dataset.original) { typed = text.value; text.value = text.dataset.original; }
    show();
  };
  const choose = (input) => {
    input.checked = true;
    chosen(input);
    if (input.value === "correction" && text) { text.focus(); text.select(); }
  };
  for (const one of choices) one.addEventListener("change", () => chosen(one));
  text?.addEventListener("input", () => {
    const correction = choices.find((one) => one.value === "correction");
    if (correction) correction.checked = true;
    typed = null;
    show();
  });
  show();
  if (text?.autofocus) { // a correction was refused
    text.focus();
    if (text.value === text.dataset.original) text.select();
    else text.setSelectionRange(text.value.length, text.value.length);
  }
  teach.addEventListener("submit", ({ submitter }) => { isSent = submitter?.value !== "skip"; });
  addEventListener("beforeunload", (event) => {
    const isTyped = [text, teach.elements.comment].some((one) => one && one.value !== one.dataset.saved);
    if ((isTyped || typed !== null) && !isSent) event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); teach.requestSubmit(teach.querySelector(".main")); }
    if (event.key === "Escape") document.activeElement.blur();
    if (event.target.matches("textarea, input[type=text]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^[1-9]$/.test(event.key) && choices[event.key - 1]) { event.preventDefault(); choose(choices[event.key - 1]); }
    const skip = teach.querySelector("[value=skip]");
    if (event.key.toLowerCase() === "s" && skip) { event.preventDefault(); teach.requestSubmit(skip); }
  });
}
