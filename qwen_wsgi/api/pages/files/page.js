"use strict";
// The pages can be read without this: it adds buttons that copy, and lets countdowns run.
for (const box of document.querySelectorAll("pre")) {
  const text = box.textContent;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      // Without HTTPS browsers have no clipboard for pages: the text is selected instead.
      const range = document.createRange();
      range.selectNodeContents(box.querySelector("code") ?? box);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
    }
  });
  box.append(button);
}
const begun = Date.now();
const shown = (seconds) => {
  if (seconds <= 0) return "now";
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  return "in " + parts.map((each) => String(each).padStart(2, "0")).join(":");
};
const times = [...document.querySelectorAll("time[data-left]")];
const tick = () => {
  for (const each of times) {
    each.textContent = shown(Number(each.dataset.left) - (Date.now() - begun) / 1000);
  }
};
if (times.length) {
  tick();
  setInterval(tick, 1000);
}
