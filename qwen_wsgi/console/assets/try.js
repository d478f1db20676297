// A chat in any of the four dialects. What models say is only ever set as text.
"use strict";

const $ = (id) => document.getElementById(id);
const token = document.querySelector("meta[name=csrf]").content;
const headers = { "x-csrf-token": token, "content-type": "application/json" };
const LARGEST_PICTURE = 8 * 1024 * 1024;
const WEATHER = {
  name: "get_weather",
  description: "Tells the weather of a place.",
  parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"] },
};
let turns = [];
let running = null;

// --- what is sent, in each dialect -------------------------------------------------------------

const BODIES = {
  chat(asked) {
    const messages = asked.system ? [{ role: "system", content: asked.system }] : [];
    for (const turn of turns) {
      if (turn.role === "user") {
        messages.push({ role: "user", content: turn.picture
          ? [{ type: "text", text: turn.text }, { type: "image_url", image_url: { url: turn.picture } }] : turn.text });
      } else if (turn.role === "tool") {
        messages.push({ role: "tool", tool_call_id: turn.id, content: turn.text });
      } else {
        const calls = turn.calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.input } }));
        messages.push({ role: "assistant", content: turn.text, ...(calls.length && { tool_calls: calls }) });
      }
    }
    return {
      model: asked.model, messages, max_tokens: asked.max, stream: asked.stream,
      ...(asked.stream && { stream_options: { include_usage: true } }),
      ...(asked.tool && { tools: [{ type: "function", function: WEATHER }] }),
      enable_thinking: asked.think,
    };
  },
  responses(asked) {
    const input = [];
    for (const turn of turns) {
      if (turn.role === "user") {
        const content = [{ type: "input_text", text: turn.text }];
        if (turn.picture) content.push({ type: "input_image", image_url: turn.picture });
        input.push({ type: "message", role: "user", content });
      } else if (turn.role === "tool") {
        input.push({ type: "function_call_output", call_id: turn.id, output: turn.text });
      } else {
        if (turn.text) input.push({ type: "message", role: "assistant", content: [{ type: "output_text", text: turn.text }] });
        for (const call of turn.calls) input.push({ type: "function_call", call_id: call.id, name: call.name, arguments: call.input });
      }
    }
    return {
      model: asked.model, input, max_output_tokens: asked.max, stream: asked.stream, store: false,
      ...(asked.system && { instructions: asked.system }),
      ...(asked.tool && { tools: [{ type: "function", ...WEATHER }] }),
      reasoning: asked.think ? { effort: "medium", summary: "auto" } : { effort: "none" },
    };
  },
  messages(asked) {
    const messages = [];
    for (const turn of turns) {
      if (turn.role === "user") {
        const content = [{ type: "text", text: turn.text }];
        if (turn.picture) {
          const [, kind, data] = /^data:(.*?);base64,(.*)$/.exec(turn.picture);
          content.unshift({ type: "image", source: { type: "base64", media_type: kind, data } });
        }
        messages.push({ role: "user", content });
      } else if (turn.role === "tool") {
        messages.push({ role: "user", content: [{ type: "tool_result", tool_use_id: turn.id, content: turn.text }] });
      } else {
        const content = turn.text ? [{ type: "text", text: turn.text }] : [];
        for (const call of turn.calls) content.push({ type: "tool_use", id: call.id, name: call.name, input: parsed(call.input) || {} });
        messages.push({ role: "assistant", content });
      }
    }
    return {
      model: asked.model, messages, max_tokens: asked.max, stream: asked.stream,
      ...(asked.system && { system: asked.system }),
      ...(asked.tool && { tools: [{ name: WEATHER.name, description: WEATHER.description, input_schema: WEATHER.parameters }] }),
      ...(asked.think && { thinking: { type: "enabled", budget_tokens: 1024 } }),
    };
  },
  completions(asked) {
    return {
      model: asked.model, prompt: turns.at(-1).text, max_tokens: asked.max, stream: asked.stream,
      ...(asked.stream && { stream_options: { include_usage: true } }),
    };
  },
};

function parsed(text) {
  try { return JSON.parse(text); } catch { return null; }
}

// --- what comes, in each dialect: text, thinking, tool calls -------------------------------------

const READERS = {
  chat(event, answer) {
    const said = event.choices && event.choices[0] && (event.choices[0].delta || event.choices[0].message);
    if (!said) return;
    answer.add(said.content, said.reasoning_content);
    for (const [place, call] of (said.tool_calls || []).entries()) {
      answer.call(call.index ?? place, call.id, call.function && call.function.name, call.function && call.function.arguments);
    }
  },
  responses(event, answer) {
    const type = event.type || "";
    if (type === "response.output_text.delta") answer.add(event.delta);
    else if (/^response\.reasoning.*\.delta$/.test(type)) answer.add("", event.delta);
    else if (type === "response.output_item.added" && event.item.type === "function_call") answer.call(event.output_index, event.item.call_id, event.item.name, "");
    else if (type === "response.function_call_arguments.delta") answer.call(event.output_index, "", "", event.delta);
    else if (type === "response.failed") answer.fail((event.response.error || {}).message);
    else if (Array.isArray(event.output)) {
      for (const [place, item] of event.output.entries()) {
        if (item.type === "function_call") answer.call(place, item.call_id, item.name, item.arguments);
        for (const part of item.content || []) answer.add(part.type === "output_text" ? part.text : "", part.type === "reasoning_text" ? part.text : "");
        for (const part of item.summary || []) answer.add("", part.text);
      }
    }
  },
  messages(event, answer) {
    if (event.type === "content_block_start" && event.content_block.type === "tool_use") answer.call(event.index, event.content_block.id, event.content_block.name, "");
    else if (event.type === "content_block_delta") {
      const delta = event.delta;
      if (delta.type === "input_json_delta") answer.call(event.index, "", "", delta.partial_json);
      else answer.add(delta.text, delta.thinking);
    } else if (Array.isArray(event.content)) {
      for (const [place, block] of event.content.entries()) {
        answer.add(block.text, block.thinking);
        if (block.type === "tool_use") answer.call(place, block.id, block.name, JSON.stringify(block.input));
      }
    }
  },
  completions(event, answer) {
    if (event.choices && event.choices[0]) answer.add(event.choices[0].text);
  },
};

// --- one answer on the page ------------------------------------------------------------------

function box(kind, label) {
  const made = document.createElement("div");
  made.className = `turn ${kind}`;
  made.setAttribute("aria-label", label);
  $("talk").append(made);
  return made;
}

class Answer {
  constructor() {
    this.turn = { role: "assistant", text: "", calls: [] };
    this.thinking = "";
    this.failed = "";
    this.box = box("model", "Answer");
    this.box.textContent = "…";
    this.byPlace = new Map();
  }

  add(text, thinking) {
    if (thinking) this.thinking += thinking;
    if (text) this.turn.text += text;
    if (text || thinking) this.draw();
  }

  call(place, id, name, input) {
    let found = this.byPlace.get(place);
    if (!found) {
      found = { id: "", name: "", input: "" };
      this.byPlace.set(place, found);
      this.turn.calls.push(found);
    }
    if (id) found.id = id;
    if (name) found.name = name;
    if (input) found.input += input;
    this.draw();
  }

  fail(text) {
    this.failed = text || "It failed, and nothing was said why.";
    this.draw();
  }

  draw() {
    // Once in a frame: a fast model sends more than anybody reads.
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => { this.due = false; this.show(); });
  }

  show() {
    const open = this.box.querySelector("details.thinking")?.open;
    this.box.replaceChildren();
    if (this.thinking) {
      const details = document.createElement("details");
      details.className = "thinking";
      details.open = Boolean(open);
      const summary = document.createElement("summary");
      summary.textContent = "Thinking";
      details.append(summary, this.thinking);
      this.box.append(details);
    }
    this.box.append(this.turn.text);
    for (const call of this.turn.calls) {
      const shown = document.createElement("p");
      const code = document.createElement("code");
      code.textContent = `${call.name}(${call.input})`;
      shown.append("Tool call: ", code);
      this.box.append(shown);
    }
    if (this.failed) {
      this.box.classList.add("bad");
      const shown = document.createElement("p");
      shown.textContent = this.failed;
      this.box.append(shown);
    }
    if (!this.box.hasChildNodes() || !this.box.textContent) this.box.textContent = "(nothing)";
  }
}

// --- sending -----------------------------------------------------------------------------------

function errorOf(value) {
  const error = value && (value.error || (value.response && value.response.error));
  return error ? error.message || JSON.stringify(error) : "";
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const data = rest.slice(0, end).split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      rest = rest.slice(end + 2);
      const event = data && data !== "[DONE]" ? parsed(data) : null;
      if (event) yield event;
    }
  }
}

async function ask() {
  const dialect = $("dialect").value;
  const asked = {
    model: $("model").value, max: Number($("max").value) || 2000, stream: $("stream").checked,
    think: $("think").checked, tool: $("tool").checked, system: $("system").value.trim(),
  };
  const body = BODIES[dialect](asked);
  const answer = new Answer();
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  showSnippets(dialect, body);
  let id = "";
  try {
    const response = await fetch(`/console/try/${dialect}`, { method: "POST", headers, body: JSON.stringify(body), signal: running.signal });
    id = response.headers.get("x-request-id") || "";
    if (!response.ok || !(response.headers.get("content-type") || "").startsWith("text/event-stream")) {
      const value = parsed(await response.text());
      const error = errorOf(value);
      if (error || !response.ok) answer.fail(error || `The server answers with ${response.status}.`);
      else READERS[dialect](value, answer);
    } else {
      for await (const event of eventsOf(response.body)) {
        const error = errorOf(event);
        if (error) answer.fail(error);
        else READERS[dialect](event, answer);
      }
    }
  } catch (error) {
    if (running.signal.aborted) answer.fail("Stopped.");
    else if (!answer.failed) answer.fail(`The connection broke: ${error.message}`);
  }
  running = null;
  $("send").disabled = false;
  $("stop").disabled = true;
  answer.show();
  if (answer.failed) turns.pop(); else turns.push(answer.turn);
  for (const call of answer.turn.calls) if (!answer.failed) askForResult(call);
  if (id) await showFacts(id);
}

// The person is the tool.
function askForResult(call) {
  const form = document.createElement("form");
  form.className = "turn";
  const label = document.createElement("label");
  const field = document.createElement("textarea");
  field.id = `result-${turns.length}-${call.id}`;
  label.htmlFor = field.id;
  label.textContent = `What ${call.name} answers`;
  field.value = '{"weather": "sunny", "degrees": 21}';
  const button = document.createElement("button");
  button.textContent = "Send as the tool's answer";
  form.append(label, field, button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) return;
    form.remove();
    box("user", "Answer of the tool").textContent = field.value;
    turns.push({ role: "tool", id: call.id, text: field.value });
    if (!$("talk").querySelector("form.turn")) ask();
  });
  $("talk").append(form);
}

async function showSnippets(dialect, body) {
  try {
    const told = JSON.stringify({ dialect, body: withoutPictures(body) });
    const answer = await fetch("/console/try/snippets", { method: "POST", headers, body: told });
    if (!answer.ok) return;
    const made = await answer.json();
    $("curl").textContent = made.curl;
    $("python").textContent = made.python;
    $("snippets").hidden = false;
  } catch { /* the call itself tells what is wrong */ }
}

// Their bytes would only be left out again by the server.
function withoutPictures(body) {
  return JSON.parse(JSON.stringify(body, (name, value) => (
    typeof value === "string" && value.length > 2000 && (name === "url" || name === "image_url" || name === "data")
      ? value.slice(0, 400 + value.indexOf(",")) : value)));
}

async function showFacts(id) {
  try {
    const answer = await fetch(`/console/try/call?id=${encodeURIComponent(id)}`);
    const told = await answer.json();
    if (!told.found) return;
    const list = document.createElement("dl");
    const rows = [...told.stages, ["altogether", told.total], ["tokens in / out", told.tokens], ["money", told.money], ["account", told.account || "–"]];
    for (const [name, value] of rows) {
      const row = document.createElement("div");
      const dt = document.createElement("dt");
      const dd = document.createElement("dd");
      dt.textContent = name;
      dd.textContent = value;
      row.append(dt, dd);
      list.append(row);
    }
    const link = document.createElement("a");
    link.href = told.address;
    link.textContent = "All of it";
    $("facts-body").replaceChildren(told.why.join(" "), list, link);
    $("facts").hidden = false;
  } catch { /* shown on the page of live calls, too */ }
}

function readPicture(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}

$("try").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running || !$("text").value.trim()) return;
  const turn = { role: "user", text: $("text").value };
  const file = $("picture").files[0];
  if (file && $("dialect").value !== "completions") {
    if (file.size > LARGEST_PICTURE) { $("picture").setCustomValidity("At most 8 MB."); $("picture").reportValidity(); return; }
    turn.picture = await readPicture(file);
  }
  const shown = box("user", "Your message");
  shown.textContent = turn.text;
  if (turn.picture) {
    const picture = document.createElement("img");
    picture.src = turn.picture;
    picture.alt = "Your picture";
    shown.append(picture);
  }
  turns.push(turn);
  $("text").value = "";
  $("picture").value = "";
  await ask();
  $("text").focus();
});
$("picture").addEventListener("change", () => $("picture").setCustomValidity(""));
$("stop").addEventListener("click", () => running && running.abort());
$("anew").addEventListener("click", () => {
  if (running) running.abort();
  turns = [];
  $("talk").replaceChildren();
  $("facts").hidden = $("snippets").hidden = true;
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("try").requestSubmit();
});
