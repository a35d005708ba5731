"use strict";
const tokens = JSON.parse(document.getElementById("values").textContent).tokens;
const canvas = document.getElementById("map");
const count = tokens.length;
let weights = null; // (count, count) of the chosen head
let chosen = count - 1;
let name = "";

// The image holds 255 * (1 - sqrt(weight)); its pixels are the weights themselves.
function read(image) {
  const plain = document.createElement("canvas");
  plain.width = plain.height = count;
  const context = plain.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, count, count).data;
  return Float32Array.from({ length: count * count }, (_, i) => ((255 - pixels[4 * i]) / 255) ** 2);
}

const blue = (weight) => {
  const share = Math.sqrt(weight);
  return `rgb(${255 - 244 * share},${255 - 192 * share},${255 - 121 * share})`;
};

const room = 110; // pixels for the names of queries and keys
const cell = Math.max(3, Math.min(26, Math.floor(480 / count)));
const every = Math.ceil(11 / cell); // names that fit

function short(text) {
  const letters = Array.from(text);
  return letters.length > 14 ? letters.slice(0, 13).join("") + "…" : text;
}

function draw() {
  const size = room + cell * count;
  const scale = window.devicePixelRatio || 1;
  canvas.width = canvas.height = size * scale;
  canvas.style.width = size + "px";
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  for (let query = 0; query < count; query++)
    for (let key = 0; key < count; key++) {
      context.fillStyle = blue(weights[query * count + key]);
      context.fillRect(room + key * cell, room + query * cell, cell, cell);
    }
  context.strokeStyle = "#dfe3ea";
  context.strokeRect(room - 0.5, room - 0.5, cell * count + 1, cell * count + 1);
  context.strokeStyle = "#111";
  context.lineWidth = 1.5;
  context.strokeRect(room, room + chosen * cell, cell * count, cell);
  context.fillStyle = "#1c2330";
  context.font = `${Math.max(9, Math.min(12, cell))}px system-ui, "Noto Sans CJK SC", sans-serif`;
  context.textBaseline = "middle";
  for (let place = 0; place < count; place += every) {
    context.textAlign = "right";
    context.fillText(short(tokens[place]), room - 5, room + (place + 0.5) * cell, room - 8);
    context.save();
    context.translate(room + (place + 0.5) * cell, room - 5);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(short(tokens[place]), 0, 0, room - 8);
    context.restore();
  }
}

function choose(at) {
  chosen = at;
  for (const one of document.querySelectorAll(".chosen[data-at]")) one.classList.remove("chosen");
  for (const one of document.querySelectorAll(`[data-at="${at}"]`)) one.classList.add("chosen");
  const row = document.querySelector(`.next tr[data-at="${at}"]`);
  row.closest(".scroll").scrollTop = row.offsetTop - 120;
  const column = document.querySelector(`.lens th[data-at="${at}"]`);
  column.closest(".scroll").scrollLeft = column.offsetLeft - 300;
  if (weights) show();
}

function show() {
  document.getElementById("which").textContent = `${name}; the framed row is what "${tokens[chosen]}" attends to`;
  const line = document.getElementById("row");
  line.replaceChildren(
    ...tokens.map((text, key) => {
      const weight = weights[chosen * count + key];
      const token = document.createElement("span");
      token.className = "token" + (key === chosen ? " chosen" : "");
      token.dataset.at = key;
      token.textContent = text;
      token.title = weight.toFixed(3);
      token.style.background = blue(weight);
      token.style.color = weight > 0.35 ? "#fff" : "";
      return token;
    }),
  );
  draw();
}

function open(button) {
  for (const one of document.querySelectorAll(".layer .chosen")) one.classList.remove("chosen");
  button.classList.add("chosen");
  name = `Layer ${+button.dataset.layer + 1}, head ${+button.dataset.head + 1}`;
  const image = button.firstElementChild;
  image.decode().then(() => {
    weights = read(image);
    show();
  });
}

document.addEventListener("click", (event) => {
  const token = event.target.closest("[data-at]");
  const button = event.target.closest("[data-layer]");
  if (token) choose(+token.dataset.at);
  if (button) open(button);
});

function cellAt(event) {
  const box = canvas.getBoundingClientRect();
  const scale = (room + cell * count) / box.width;
  const key = Math.floor(((event.clientX - box.left) * scale - room) / cell);
  const query = Math.floor(((event.clientY - box.top) * scale - room) / cell);
  return weights && key >= 0 && query >= 0 && key < count && query < count ? [query, key] : null;
}

canvas.addEventListener("mousemove", (event) => {
  const at = cellAt(event);
  const told = document.getElementById("weight");
  told.textContent = at
    ? `"${tokens[at[0]]}" attends to "${tokens[at[1]]}": ${weights[at[0] * count + at[1]].toFixed(3)}`
    : "\u00a0";
});
canvas.addEventListener("click", (event) => {
  const at = cellAt(event);
  if (at) choose(at[0]);
});

const maps = document.querySelectorAll("[data-layer]");
open(maps[maps.length - 1]);
