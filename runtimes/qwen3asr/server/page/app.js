// The page: settings, recording, files, and what can be done with a transcript.

import { Live, openMicrophone } from "./live.js";
import { Reader, timed } from "./reader.js";

const $ = (id) => document.getElementById(id);
const reader = new Reader($("text"), $("player"));
const aligner = { languages: [], missing: false };
const shown = { file: null, text: "", subtitles: {} };
let model = "";
let live = null;
let upload = null; // what can end the request under way

// --- what the server says ------------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const key = $("key").value.trim();
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(error instanceof TypeError ? "The server does not answer." : error.message);
  }
  if (response.ok) return response;
  const problem = (await response.json().catch(() => ({}))).error ?? {};
  if (response.status === 401) $("key-form").hidden = false;
  const message = response.status === 401 ? "This is none of the server's API keys." : problem.message;
  throw Object.assign(new Error(message ?? `The server answered with status ${response.status}.`), { code: problem.code });
}

async function greet() {
  try {
    const { data } = await (await ask("v1/models")).json();
    model = data[0].id;
    $("model").textContent = model;
    fail(null);
  } catch (error) {
    if (error.code !== "invalid_api_key" || $("key").value) fail(error);
    else say("Enter an API key of this server.");
  }
}

async function fillLanguages() {
  const { names, aligned } = await (await ask("page/languages.json")).json();
  aligner.languages = aligned;
  for (const name of Object.keys(names).sort()) $("language").append(new Option(name, name));
}

// --- telling -------------------------------------------------------------------------------------------------------

function say(text) {
  $("status").textContent = text;
}

function fail(error) {
  $("error").textContent = error?.message ?? "";
  $("error").hidden = !error;
  if (error) say("");
}

function begin() {
  fail(null);
  upload?.abort();
  $("player").pause();
  $("text").replaceChildren();
  Object.assign(shown, { file: null, text: "", subtitles: {} });
  for (const id of ["player", "words-hint", "srt", "vtt"]) $(id).hidden = true;
}

// --- files ---------------------------------------------------------------------------------------------------------

async function transcribe(file, fields, signal) {
  const form = new FormData();
  form.append("file", file);
  form.append("model", model);
  if ($("language").value) form.append("language", $("language").value);
  for (const [name, value] of fields) form.append(name, value);
  return ask("v1/audio/transcriptions", { method: "POST", body: form, signal });
}

async function transcribeTimed(file, signal) {
  const segments = [
    ["response_format", "verbose_json"],
    ["timestamp_granularities[]", "segment"],
  ];
  const language = $("language").value;
  if (!aligner.missing && (!language || aligner.languages.includes(language))) {
    try {
      return await (await transcribe(file, [...segments, ["timestamp_granularities[]", "word"]], signal)).json();
    } catch (error) {
      if (error.code !== "aligner_missing") throw error;
      aligner.missing = true;
    }
  }
  return (await transcribe(file, segments, signal)).json();
}

async function open(file) {
  if (live) return;
  begin();
  const mine = (upload = new AbortController());
  $("busy").hidden = false;
  say(`Transcribing ${file.name} …`);
  try {
    showFile(file, await transcribeTimed(file, mine.signal));
    say("");
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  } finally {
    if (upload === mine) $("busy").hidden = true;
  }
}

function showFile(file, { text, words = [], segments = [] }) {
  Object.assign(shown, { file, text, subtitles: {} });
  URL.revokeObjectURL($("player").src);
  $("player").src = URL.createObjectURL(file);
  const units = words.length ? words.map((word) => ({ ...word, text: word.word })) : segments;
  reader.show(text ? timed(text, units) : [{ text: "Nobody speaks in this file." }]);
  $("words-hint").hidden = !units.length;
  for (const id of ["player", "srt", "vtt"]) $(id).hidden = false;
  $("result").hidden = false;
}

/** Subtitles are laid out by the server, which is asked once for each kind. */
async function download(kind) {
  const { file, subtitles } = shown;
  try {
    say(`Making subtitles …`);
    subtitles[kind] ??= await (await transcribe(file, [["response_format", kind]])).text();
    say("");
  } catch (error) {
    fail(error);
    return;
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([subtitles[kind]], { type: "text/plain" }));
  link.download = `${file.name.replace(/\.[^.]*$/, "")}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// --- the microphone ------------------------------------------------------------------------------------------------

async function record() {
  $("record").disabled = true;
  begin();
  $("busy").hidden = true;
  const items = new Map();
  try {
    if (!model) await ask("v1/models"); // says why a key is refused, which a WebSocket cannot
    const next = new Live({
      key: $("key").value.trim(),
      language: $("language").value,
      onText: (item, committed, whole) => showLive(items, item, committed, whole),
      onLevel: (level) => ($("level").value = level),
      onError: (message) => fail(new Error(message)),
    });
    await next.start(await openMicrophone());
    live = next;
    setRecording(true);
    live.ended.then(() => live === next && stop());
  } catch (error) {
    fail(error);
  } finally {
    $("record").disabled = false;
  }
}

async function stop() {
  const last = live;
  $("record").disabled = true;
  await last.stop();
  if (live === last) live = null;
  setRecording(false);
  $("record").disabled = false;
}

function setRecording(on) {
  $("record").setAttribute("aria-pressed", on);
  $("record").textContent = on ? "Stop" : "Record";
  $("level").hidden = !on;
  $("file").disabled = on;
  if (on) $("result").hidden = false;
  say(on ? "Listening …" : "");
}

function showLive(items, item, committed, whole) {
  if (!items.has(item)) {
    const [line, certain, pending] = ["p", "span", "span"].map((tag) => document.createElement(tag));
    pending.className = "pending";
    pending.ariaHidden = "true"; // it is read out when it is certain
    line.append(certain, pending);
    $("text").append(line);
    items.set(item, { line, certain, pending });
  }
  const { line, certain, pending } = items.get(item);
  certain.textContent = committed;
  pending.textContent = whole.slice(committed.length);
  line.hidden = !whole;
  const texts = [...items.values()].map((each) => each.certain.textContent);
  shown.text = texts.filter(Boolean).join("\n");
}

// --- what the user does --------------------------------------------------------------------------------------------

$("record").addEventListener("click", () => (live ? stop() : record()));
$("file").addEventListener("change", ({ target }) => {
  if (target.files.length) open(target.files[0]);
  target.value = ""; // the same file may be chosen again
});
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
document.addEventListener("dragover", () => $("drop").classList.add("over"));
document.addEventListener("dragleave", (event) => event.relatedTarget ?? $("drop").classList.remove("over"));
document.addEventListener("drop", ({ dataTransfer }) => {
  $("drop").classList.remove("over");
  if (dataTransfer.files.length) open(dataTransfer.files[0]);
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  greet();
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(shown.text);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren($("text")); // no clipboard without https: one key is left to press
    say("The text is selected; copy it with Ctrl+C or ⌘C.");
  }
});
for (const kind of ["srt", "vtt"]) $(kind).addEventListener("click", () => download(kind));

await Promise.all([greet(), fillLanguages().catch(fail)]);
document.body.dataset.ready = "true";
