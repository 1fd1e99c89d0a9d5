// Troubleshooting: show the messages that resemble a pasted one. What varies in them is in braces.
"use strict";

// A pasted message holds names that no page has: offer the other way to look for it.
document.addEventListener("DOMContentLoaded", () => {
  const results = document.getElementById("search-results");
  const query = new URLSearchParams(window.location.search).get("q");
  if (!results || !query) return;
  const link = document.createElement("a");
  link.href = "troubleshooting.html?message=" + encodeURIComponent(query);
  link.textContent = "Is it an error message? Look for it among all messages.";
  const line = document.createElement("p");
  line.append(link);
  results.before(line);
});

document.addEventListener("DOMContentLoaded", () => {
  const place = document.getElementById("find-message");
  if (!place) return;

  const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [];
  const boxes = [...document.querySelectorAll("div.message")];
  const messages = boxes.map((box) => ({
    box: box.closest(".literal-block-wrapper") || box,
    words: words(box.querySelector("pre").textContent.replace(/\{[^{}]*\}/g, " ")),
  }));
  const count = new Map();
  for (const message of messages)
    for (const word of new Set(message.words)) count.set(word, (count.get(word) || 0) + 1);
  // Words that few messages have tell more.
  const weight = (word) => Math.log(1 + messages.length / (count.get(word) || 1));

  const field = document.createElement("textarea");
  field.rows = 3;
  field.placeholder = "Paste a message";
  field.setAttribute("aria-label", "Paste a message");
  const found = document.createElement("div");
  found.setAttribute("aria-live", "polite");
  place.append(field, found);

  const search = () => {
    const given = new Set(words(field.value));
    const scores = messages.map((message) => {
      const own = [...new Set(message.words)];
      const total = own.reduce((sum, word) => sum + weight(word), 0);
      const shared = own.reduce((sum, word) => sum + (given.has(word) ? weight(word) : 0), 0);
      return { message, share: shared / total, shared };
    });
    // Of a message most fixed words must be there; of two that are, the longer one fits better.
    const fit = (score) => score.share * score.shared;
    const fitting = scores.filter((score) => score.share > 0.5 && score.shared > 3)
      .sort((a, b) => fit(b) - fit(a));
    const best = fitting.filter((score) => fit(score) > 0.5 * fit(fitting[0])).slice(0, 5);
    found.replaceChildren();
    if (!given.size) return;
    const title = document.createElement("p");
    title.textContent = best.length ? "It resembles:" : "No message here resembles it.";
    found.append(title);
    for (const { message } of best) {
      const copy = message.box.cloneNode(true);
      copy.removeAttribute("id");
      copy.querySelectorAll("[id]").forEach((node) => node.removeAttribute("id"));
      found.append(copy);
    }
  };
  field.addEventListener("input", search);
  const asked = new URLSearchParams(window.location.search).get("message");
  if (asked) {
    field.value = asked;
    search();
  }
});
