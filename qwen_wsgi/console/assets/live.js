// Keeps the page of live calls up to date. Each row is made of texts; rows of ended calls are made
// by the server, in which names are escaped.
"use strict";

const state = document.getElementById("live-state");
const live = document.getElementById("live");
const ended = document.getElementById("ended");
const token = document.querySelector("meta[name=csrf]").content;
const MOST = 200;

function rowOf(key, id, box, cells) {
  const row = document.createElement("tr");
  row.dataset.key = key;
  cells.forEach((cell, place) => {
    const td = row.insertCell();
    if (place === 3) {
      const link = document.createElement("a");
      link.href = "/console/live/call?id=" + encodeURIComponent(id);
      td.append(link);
    }
  });
  const button = document.createElement("button");
  button.type = "button";
  button.className = "plain danger";
  button.textContent = "Cancel";
  button.setAttribute("aria-label", `Cancel the call of ${cells[0]}`);
  button.addEventListener("click", () => cancel(id, box, button));
  row.insertCell().append(button);
  return row;
}

function fill(row, cells) {
  cells.forEach((cell, place) => {
    const td = row.cells[place];
    const target = td.firstElementChild || td;
    if (target.textContent !== cell) target.textContent = cell;
  });
}

function showLive(calls) {
  const known = new Map([...live.rows].map((row) => [row.dataset.key, row]));
  for (const [key, id, box, ...cells] of calls) {
    let row = known.get(key);
    known.delete(key);
    if (!row || !row.dataset.made) {
      const made = rowOf(key, id, box, cells);
      made.dataset.made = "1";
      if (row) row.replaceWith(made); else live.append(made);
      row = made;
    }
    fill(row, cells);
  }
  for (const row of known.values()) row.remove();
  document.getElementById("live-count").textContent = calls.length;
}

const addressOf = (row) => row.querySelector("a").getAttribute("href");
const endOf = (row) => Number(addressOf(row).split("=")[1]);

function showEnded(html) {
  const body = document.createElement("template");
  body.innerHTML = `<table><tbody>${html}</table>`;
  const known = new Set([...ended.rows].map(addressOf));
  let next = ended.firstElementChild;
  // Both are the newest first; what two boxes tell, and what a lost connection has told, may overlap.
  for (const row of body.content.querySelectorAll("tr")) {
    if (known.has(addressOf(row))) continue;
    while (next && endOf(next) > endOf(row)) next = next.nextElementSibling;
    row.className = "new";
    ended.insertBefore(row, next);
  }
  while (ended.rows.length > MOST) ended.lastElementChild.remove();
}

async function cancel(id, box, button) {
  button.disabled = true;
  let told = "The server does not answer.";
  try {
    const answer = await fetch("/console/live/cancel", {
      method: "POST",
      headers: { "x-csrf-token": token, "content-type": "application/x-www-form-urlencoded", accept: "text/plain" },
      body: new URLSearchParams(box ? { id, box } : { id }),
    });
    told = await answer.text();
    if (!answer.ok) button.disabled = false;
  } catch { button.disabled = false; }
  document.getElementById("live-told").textContent = told;
}

function watch(since) {
  const events = new EventSource(`/console/live/events?since=${encodeURIComponent(since)}`);
  const show = (text, kind) => { state.textContent = text; state.className = `tag ${kind}`; };
  events.addEventListener("open", () => show("live", "good"));
  events.addEventListener("calls", (event) => {
    const told = JSON.parse(event.data);
    showLive(told.calls);
    if (told.ended) showEnded(told.ended);
    document.getElementById("live-note").textContent = told.note;
  });
  events.addEventListener("end", (event) => {
    events.close();
    show(event.data, "bad");
  });
  events.addEventListener("error", () => {
    show(events.readyState === EventSource.CLOSED ? "not connected: open the page again" : "connecting again", "waiting");
  });
}

watch(state.dataset.since);
