// Shows how much time is left to confirm a login, and its end.
"use strict";

const title = document.getElementById("login-title");
const left = document.getElementById("left");
const note = document.getElementById("login-note");

async function look() {
  try {
    const answer = await fetch("/console/login-to-qwen/state", { headers: { accept: "application/json" } });
    if (answer.ok) {
      const told = await answer.json();
      if (told.state !== title.dataset.state) { location.reload(); return; }
      if (left) left.textContent = told.left;
      if (note) note.textContent = told.note;
    } else if (answer.status === 401) { location.reload(); return; }
  } catch { /* the server is away for a moment: the next look tells */ }
  setTimeout(look, 1000);
}

setTimeout(look, 1000);
