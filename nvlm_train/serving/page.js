
"use strict";
// Everything that is shown is set as text: neither a model nor a picture's name can write markup.
const $ = (id) => document.getElementById(id);
const KEPT = ["image/png", "image/jpeg", "image/webp"];
const PARTS = [["prepare", "preparing pictures"], ["wait", "waiting"], ["read", "reading the prompt"], ["write", "writing"]];
let model = null, history = [], attached = [], running = null;

function make(kind, options = {}, ...children) {
  const element = document.createElement(kind);
  for (const [name, value] of Object.entries(options)) element[name] = value;
  element.append(...children);
  return element;
}

function hint(text) { $("hint").textContent = text; }

function headers() {
  const key = $("key").value;
  return {"Content-Type": "application/json", ...(key && {"Authorization": `Bearer ${key}`})};
}

async function meet() {
  const response = await fetch("v1/models", {headers: headers()}).catch(() => null);
  if (response && response.status === 401) {
    $("key-label").hidden = false;
    showSettings(true);
    hint("This server wants a key.");
    return;
  }
  if (!response || !response.ok) { hint("The server does not answer."); return; }
  hint("");
  model = (await response.json()).data[0];
  const about = model.nvlm;
  $("name").textContent = document.title = model.id;
  $("about").textContent = [about.architecture.toUpperCase().replace("_", "-"),
                            `up to ${about.max_tiles} tiles of ${about.tile_size} pixels`,
                            `${about.max_tokens.toLocaleString("en")} tokens`].join(" · ");
  $("longest").max = about.max_new_tokens;
}

// -- pictures --------------------------------------------------------------------------------------------------------

// What the server takes as it is; anything else that this browser can draw as a PNG, and too large a picture made smaller.
async function asPicture(file) {
  const bitmap = await createImageBitmap(file);
  const most = model ? model.nvlm.max_pixels : 25e6, pixels = bitmap.width * bitmap.height;
  if (KEPT.includes(file.type) && pixels <= most) return dataAddress(file);
  const scale = Math.min(1, Math.sqrt(most / pixels));
  const canvas = make("canvas", {width: Math.floor(bitmap.width * scale), height: Math.floor(bitmap.height * scale)});
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (scale < 1) hint(`${file.name} was made smaller: ${canvas.width} × ${canvas.height} pixels.`);
  return canvas.toDataURL(file.type === "image/jpeg" ? "image/jpeg" : "image/png", 0.92);
}

function dataAddress(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function attach(files) {
  const most = model ? model.nvlm.max_images : 8;
  hint("");
  for (const file of files) {
    if (!file.type.startsWith("image/")) { hint(`${file.name} is no picture.`); continue; }
    if (attached.length >= most) { hint(`This server takes ${most} pictures.`); break; }
    try {
      attached.push({name: file.name, url: await asPicture(file)});
    } catch {
      hint(`${file.name} cannot be read.`);
    }
  }
  showAttached();
}

function showAttached() {
  $("attached").replaceChildren(...attached.map((picture, at) => make("div", {},
    make("img", {src: picture.url, alt: picture.name}),
    make("button", {type: "button", textContent: "×", title: `Leave ${picture.name} out`,
                    onclick: () => { attached.splice(at, 1); showAttached(); }}))));
}

// -- asking ----------------------------------------------------------------------------------------------------------

function body(messages) {
  const system = $("system").value.trim(), number = (id) => $(id).value === "" ? undefined : Number($(id).value);
  return JSON.stringify({
    model: model.id, stream: true, nvlm: {tiles: true},
    messages: [...(system ? [{role: "system", content: system}] : []), ...messages],
    temperature: number("temperature"), top_p: number("top-p"), max_completion_tokens: number("longest"), seed: number("seed"),
  });
}

async function ask() {
  const text = $("question").value.trim();
  if (running || !model || !text) { if (!model) meet(); return; }
  const pictures = attached;
  const content = [...pictures.map((each) => ({type: "image_url", image_url: {url: each.url}})), {type: "text", text}];
  const asked = [...($("remember").checked ? history : []), {role: "user", content}];
  const card = newCard(text, pictures);
  attached = [];
  $("question").value = "";
  hint("");
  showAttached();
  grow();
  running = new AbortController();
  busy(true);
  let answer = "", failed = false;
  try {
    for await (const chunk of chunks(await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: body(asked), signal: running.signal}))) {
      answer += take(card, chunk);
    }
  } catch (error) {
    if (error.name === "AbortError") card.note("Stopped.");
    else { failed = true; card.wrong(error.message); }
  }
  running = null;
  busy(false);
  card.end();
  if (failed && !answer) giveBack(text, pictures);
  else history = [...asked, {role: "assistant", content: answer}];
}

// A question that was not answered, to be asked again; what was typed meanwhile stays.
function giveBack(text, pictures) {
  if (!$("question").value) $("question").value = text;
  if (!attached.length) attached = pictures;
  showAttached();
  grow();
}

// The chunks of a streamed answer. Throws what the server says is wrong, also if the stream breaks off.
async function* chunks(response) {
  if (!response.ok) {
    const said = await response.json().catch(() => null);
    throw new Error(said && said.error ? said.error.message : `${response.status} ${response.statusText}`);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) throw new Error("The answer broke off.");
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      if (event === "data: [DONE]") return;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

// Show a chunk; returns the text that it adds.
function take(card, chunk) {
  if (chunk.nvlm && chunk.nvlm.pictures) card.pictures(chunk.nvlm.pictures);
  if (chunk.nvlm && chunk.nvlm.seconds) card.times(chunk.nvlm);
  const choice = chunk.choices[0], piece = (choice && choice.delta.content) || "";
  if (piece) card.add(piece);
  if (choice && choice.finish_reason === "length") card.note("Cut off: the longest answer that was asked for, or that there was room for.");
  return piece;
}

// -- showing ---------------------------------------------------------------------------------------------------------

function newCard(question, pictures) {
  const text = make("p", {className: "text running"}), seen = make("div", {className: "seen", hidden: true});
  const times = make("div", {className: "times", hidden: true}), answer = make("article", {className: "answer"}, text);
  const shown = make("div", {className: "pictures"}, ...pictures.map((each) => make("img", {src: each.url, alt: each.name})));
  $("welcome").hidden = true;
  answer.append(seen, times);
  $("talk").append(make("div", {className: "asked"}, shown, make("p", {textContent: question})), answer);
  const follow = () => window.scrollTo({top: document.body.scrollHeight});
  follow();
  return {
    add: (piece) => { text.append(piece); follow(); },
    note: (words) => { seen.before(make("p", {className: "cut", textContent: words})); follow(); },
    wrong: (words) => { seen.before(make("p", {className: "wrong", textContent: words})); follow(); },
    pictures: (all) => {
      if (!all.length) return;
      seen.hidden = false;
      seen.append(make("h2", {textContent: "What the model sees"}), ...all.map(tilesOf));
      follow();
    },
    times: (facts) => { times.hidden = false; times.append(...timesOf(facts)); follow(); },
    end: () => {
      text.classList.remove("running");
      if (!text.textContent && !answer.querySelector(".wrong")) text.append("(nothing)");
    },
  };
}

function tileOf(tile) {
  const label = tile.tag || "no tag";
  const figure = make("figure", {}, make("img", {src: tile.image, alt: label}),
    make("figcaption", {}, ...label.split(/(?<=_)/).flatMap((word) => [word, make("wbr")])));
  if (tile.column !== undefined) { figure.style.gridColumn = tile.column + 1; figure.style.gridRow = tile.row + 1; }
  return figure;
}

// The grid as it was cut, and the thumbnail beside it, for that is the order in which the model is given them.
function tilesOf(picture) {
  const placed = picture.tiles.filter((tile) => tile.column !== undefined);
  const loose = picture.tiles.filter((tile) => tile.column === undefined);
  const parts = placed.length ? [make("div", {className: "grid"}, ...placed.map(tileOf))] : [];
  return make("div", {className: picture.columns > 3 ? "picture dense" : "picture",
                      title: `${picture.width} × ${picture.height} pixels, cut into ${picture.columns} × ${picture.rows}`},
              ...parts, ...loose.map(tileOf));
}

function duration(seconds) {
  return seconds < 0.9995 ? `${(1000 * seconds).toFixed(seconds < 0.0095 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;
}

function timesOf(facts) {
  const bar = make("div", {className: "bar"}), legend = make("ul", {className: "legend"});
  for (const [part, words] of PARTS) {
    const piece = make("i", {className: part, title: `${words}: ${duration(facts.seconds[part])}`});
    piece.style.flexGrow = 1000 * facts.seconds[part];      // shares of less than 1 in all would leave the bar's end empty
    bar.append(piece);
    legend.append(make("li", {}, make("i", {className: part}), `${words} `, make("b", {textContent: duration(facts.seconds[part])})));
  }
  const total = PARTS.reduce((sum, [part]) => sum + facts.seconds[part], 0);
  const speed = facts.tokens_per_second ? `, ${facts.tokens_per_second.toFixed(facts.tokens_per_second < 10 ? 1 : 0)} tokens/s` : "";
  const tiles = facts.tiles ? ` and ${facts.tiles} ${facts.tiles === 1 ? "tile" : "tiles"}` : "";
  const sums = `${facts.prompt_tokens.toLocaleString("en")} tokens${tiles} read; ${facts.completion_tokens} written${speed}`;
  return [make("h2", {textContent: `Where ${duration(total)} went`}), bar, legend, make("p", {className: "sums", textContent: sums})];
}

// -- the page --------------------------------------------------------------------------------------------------------

function busy(is) { $("send").hidden = is; $("stop").hidden = !is; }

function grow() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

function showSettings(open) { $("settings").hidden = !open; $("settings-button").setAttribute("aria-expanded", String(open)); }

$("settings").addEventListener("submit", (event) => event.preventDefault());
$("settings-button").addEventListener("click", () => showSettings($("settings").hidden));
for (const id of ["temperature", "top-p"]) $(id).addEventListener("input", () => { $(`${id}-shown`).textContent = $(id).value; });
$("key").addEventListener("change", meet);
$("fresh").addEventListener("click", () => {
  if (running) running.abort();
  history = [];
  for (const each of document.querySelectorAll(".asked, .answer")) each.remove();
  $("welcome").hidden = false;
  $("question").focus();
});
$("composer").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("stop").addEventListener("click", () => running && running.abort());
$("question").addEventListener("input", grow);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
$("files").addEventListener("change", async () => { await attach([...$("files").files]); $("files").value = ""; });
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) { event.preventDefault(); attach(files); }
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").hidden = false; });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  attach([...event.dataTransfer.files]);
});
meet();
