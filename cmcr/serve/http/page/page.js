"use strict";

const $ = (id) => document.getElementById(id);
const TOP = 12;
const CLOUDS = ["ply", "npy", "npz", "off", "obj", "stl", "glb", "xyz"];
let recorder = null;
let baselines = {}; // of a connection, by its name
let asking = 0; // the number of the last search: earlier ones are not shown

async function ask(path, body) {
  const headers = {};
  if ($("token").value) headers.Authorization = `Bearer ${$("token").value}`;
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body),
  });
  if (answer.ok) return answer;
  if (answer.status === 401) $("token-row").hidden = false;
  let told = answer.statusText;
  try { told = (await answer.json()).error.message; } catch { /* no JSON: the status says it */ }
  throw new Error(answer.status === 429 ? `busy: ${told}` : told);
}

function say(state, error = "") {
  $("state").textContent = state;
  $("error").textContent = error;
}

async function begin() {
  try {
    const [models, datasets] = await Promise.all(
      ["/v1/models", "/v1/datasets"].map(async (path) => (await (await ask(path)).json()).data));
    const chosen = new Set(checked());
    $("datasets").replaceChildren(...datasets.map((one, number) => {
      const label = document.createElement("label");
      const box = document.createElement("input");
      Object.assign(box, { type: "checkbox", value: one.id, name: "dataset" });
      box.checked = chosen.size ? chosen.has(one.id) : /test|scene/.test(one.id) || number === 0;
      label.append(box, ` ${one.id} (${one.rows.toLocaleString("en")})`);
      return label;
    }));
    baselines = Object.fromEntries(models.map((one) => [one.connection, one.baselines]));
    const names = [...new Set(models.map((one) => one.connection).filter(Boolean))];
    $("connection").replaceChildren(new Option("the one that fits", ""),
      ...names.map((name) => new Option(name, name)));
    say("");
  } catch (error) { say("", error.message); }
}

const checked = () =>
  [...document.querySelectorAll("[name=dataset]:checked")].map((box) => box.value);

async function search(query, words) {
  const datasets = checked();
  if (!datasets.length) { say("", "choose what to search in"); return; }
  const number = ++asking;
  const body = { query, datasets, top_k: TOP };
  if ($("connection").value) body.connection = $("connection").value;
  const show = (title, items) => { if (number === asking) $("found").append(list(title, items)); };
  say(`searching for ${words} …`);
  $("search").disabled = true;
  try {
    const found = await (await ask("/v1/search", body)).json();
    if (number !== asking) return;
    $("found").replaceChildren();
    show(found.connection ? `by ${found.connection}` : `in ${found.space}`, found.data);
    say(`${found.data.length} found for ${words}`);
    const [plain] = baselines[found.connection] ?? [];
    if ($("beside").checked && plain) {
      const other = { ...body, connection: found.connection, baseline: plain };
      show(`by ${plain}, the closed form`, (await (await ask("/v1/search", other)).json()).data);
    }
  } catch (error) {
    if (number === asking) say("", error.message);
  } finally {
    if (number === asking) $("search").disabled = false;
  }
}

function list(title, items) {
  const section = document.createElement("section");
  const head = document.createElement("h2");
  const all = document.createElement("ol");
  head.textContent = title;
  all.append(...items.map(card));
  section.append(head, all);
  return section;
}

function card(item) {
  const one = $("item").content.cloneNode(true);
  const name = [item.text, item.label?.join(", "), item.id].find(Boolean);
  const at = item.start === null ? "" : `, from ${item.start.toFixed(1)} s`;
  const share = 100 * item.false_positives;
  const sure = item.false_positives === null
    ? "" : `; ${share < 0.01 ? "under 0.01" : share.toPrecision(2)} % of unrelated items as high`;
  one.querySelector(".name").textContent = `${item.rank}. ${name}`;
  one.querySelector(".score").textContent =
    `${item.score.toFixed(3)}${at}${sure}; ${item.dataset}`;
  const more = one.querySelector(".more");
  more.setAttribute("aria-label", `More like ${name}, ${item.id}`);
  more.addEventListener("click", () =>
    search({ dataset: item.dataset, id: item.id }, `more like ${name}`));
  if (item.media && !item.text) show(one.querySelector(".media"), item, name);
  return one;
}

async function show(place, item, name) {
  try {
    const answer = await ask(item.media);
    const type = answer.headers.get("content-type");
    if (type.startsWith("application/json")) {
      place.append(cloud(await answer.json(), name));
      return;
    }
    const url = URL.createObjectURL(await answer.blob());
    if (type.startsWith("image/")) {
      const image = document.createElement("img");
      image.onload = () => URL.revokeObjectURL(url);
      Object.assign(image, { src: url, alt: name });
      place.append(image);
    } else if (type.startsWith("audio/")) {
      const sound = document.createElement("audio");
      Object.assign(sound, { src: url, controls: true });
      sound.setAttribute("aria-label", name);
      place.append(sound);
    }
  } catch (error) { place.textContent = error.message; }
}

function cloud(points, name) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: 320, height: 320, tabIndex: 0 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${name}: turn it with the pointer or the arrow keys`);
  const middle = [0, 1, 2].map((axis) =>
    points.reduce((sum, point) => sum + point[axis], 0) / points.length);
  const centred = points.map((point) => point.map((value, axis) => value - middle[axis]));
  const size = Math.max(...centred.map((point) => Math.hypot(...point))) || 1;
  let [around, up] = [0.6, 0.3];
  const draw = () => {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, 320, 320);
    context.fillStyle = getComputedStyle(document.body).color;
    const [ca, sa, cu, su] = [Math.cos(around), Math.sin(around), Math.cos(up), Math.sin(up)];
    for (const [x, y, z] of centred) {
      const [right, depth] = [ca * x + sa * z, ca * z - sa * x];
      context.globalAlpha = 0.35 + 0.3 * ((su * y + cu * depth) / size + 1);
      context.fillRect(160 + 150 * right / size, 160 - 150 * (cu * y - su * depth) / size, 2, 2);
    }
  };
  const turn = (right, upwards) => { around += right; up += upwards; draw(); };
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) turn(event.movementX / 100, event.movementY / 100);
  });
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, -0.2], ArrowDown: [0, 0.2] };
    if (way[event.key]) { event.preventDefault(); turn(...way[event.key]); }
  });
  requestAnimationFrame(draw);
  return canvas;
}

function modality(file) {
  const suffix = file.name.split(".").pop().toLowerCase();
  if (file.type.startsWith("image/")) return "image";
  if (file.type.startsWith("audio/") || file.type.startsWith("video/")) return "audio";
  return CLOUDS.includes(suffix) ? "pointcloud" : null;
}

async function searchFile(file) {
  const kind = modality(file);
  if (!kind) { say("", `${file.name} is no picture, sound or point cloud`); return; }
  const data = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.split(",")[1] ?? "");
    reader.onerror = () => done("");
    reader.readAsDataURL(file);
  });
  const format = file.name.split(".").pop().toLowerCase().replace(/[^a-z0-9]/g, "").slice(0, 16);
  await search({ [kind]: data, format: format || "bin" }, file.name);
}

async function record() {
  if (recorder) { recorder.stop(); return; }
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      recorder = null;
      $("record").setAttribute("aria-pressed", "false");
      $("record").textContent = "Record";
      searchFile(new File(parts, "recording.webm", { type: "audio/webm" }));
    };
    recorder.start();
    $("record").setAttribute("aria-pressed", "true");
    $("record").textContent = "Stop";
    say("recording …");
  } catch (error) { say("", `no sound can be recorded: ${error.message}`); }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = $("phrase").value.trim();
  if (words) search(words, `“${words}”`);
  else say("", "type a phrase, or choose a file");
});
$("file").addEventListener("change", () => {
  if ($("file").files[0]) searchFile($("file").files[0]);
  $("file").value = ""; // the same file can be chosen again
});
$("record").addEventListener("click", record);
$("token").addEventListener("change", begin);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) searchFile(event.dataTransfer.files[0]);
  });
}
begin();
