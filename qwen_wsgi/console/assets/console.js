// What makes the pages of the console more comfortable. All of them work without it.
"use strict";

// Copies a text. Without TLS browsers give no clipboard to a page of another machine: then the text
// is selected and copied in the old way.
async function copied(text, source) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { /* there is none, or it is refused */ }
  const selection = getSelection();
  selection.selectAllChildren(source);
  const done = document.execCommand("copy");
  if (done) selection.removeAllRanges();
  return done;
}

function addCopyButton(pre) {
  const frame = document.createElement("div");
  const button = document.createElement("button");
  frame.className = "copy";
  button.type = "button";
  button.className = "plain";
  const name = (word) => {
    button.textContent = word;
    button.setAttribute("aria-label", `${word} ${pre.dataset.copy}`);
  };
  name("Copy");
  button.addEventListener("click", async () => {
    const done = await copied(pre.textContent, pre);
    name(done ? "Copied" : "Press Ctrl+C");
    say(done ? "Copied." : "The text is selected; copy it with Ctrl+C.");
    setTimeout(name, 2000, "Copy");
  });
  pre.replaceWith(frame);
  frame.append(button, pre);
}

// Tells something to people who do not see the page.
function say(text) {
  let place = document.getElementById("said");
  if (!place) {
    place = document.createElement("div");
    place.id = "said";
    place.className = "unseen";
    place.setAttribute("role", "status");
    document.body.append(place);
  }
  place.textContent = text;
}

// The secret of a one-time link is behind the "#": into the form with it, and out of the address.
function takeLink() {
  const form = document.getElementById("link-form");
  if (!form) return;
  const secret = location.hash.slice(1);
  if (!secret) return;
  history.replaceState(null, "", location.pathname);
  document.getElementById("code").value = secret;
  document.getElementById("link-code").hidden = true;
  form.querySelector("button").focus();
}

for (const pre of document.querySelectorAll("pre[data-copy]")) addCopyButton(pre);
// A form that is sent twice does its work twice.
for (const form of document.querySelectorAll("form[method=post]")) {
  form.addEventListener("submit", (event) => {
    const button = event.submitter || form.querySelector("button");
    if (button && button.dataset.busy) button.textContent = button.dataset.busy;
    setTimeout(() => { for (const each of form.querySelectorAll("button")) each.disabled = true; });
  });
}
// A page that comes back from the browser's memory has its buttons again.
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  for (const button of document.querySelectorAll("button")) button.disabled = false;
});
addEventListener("hashchange", takeLink);
takeLink();
