"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const items = data.items;
const sizes = data.system.codebook_sizes;
const byId = id => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value; else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Items alike look alike: the first code gives the hue, each further one shifts it less and less.
const firstCodes = data.system.first_codes ?? (items.codes ? [...new Set(items.codes.map(code => code[0]))].sort((a, b) => a - b) : []);
const rankOfFirst = new Map(firstCodes.map((code, rank) => [code, rank]));
function colour(codes, level) {
  let hue = 360 * (rankOfFirst.get(codes[0]) ?? 0) / Math.max(firstCodes.length, 1);
  for (let l = 1; l <= level; l++) hue += (codes[l] / sizes[l] - 0.5) * 90 / l;
  const light = level ? 0.06 * Math.sin(codes[level] * 2.4) : 0;
  return `oklch(calc(var(--tile-l) + ${light.toFixed(3)}) ${(0.085 - 0.008 * level).toFixed(3)} ${hue.toFixed(0)})`;
}

function tiles(codes, depth = codes.length) {
  const box = make("span", {className: "tiles", ariaHidden: "true"});
  for (let level = 0; level < depth; level++) {
    const tile = make("span", {className: "tile"});
    tile.style.setProperty("--c", colour(codes, level));
    box.append(tile);
  }
  return box;
}

function drawMosaic() {
  const picture = byId("mosaic");
  if (!items.codes) { picture.remove(); return; }
  const popular = items.ids.map((_, i) => i).sort((a, b) => items.events[b] - items.events[a]).slice(0, 180);
  popular.sort((a, b) => items.codes[a].reduce((d, c, l) => d || c - items.codes[b][l], 0));
  const levels = sizes.length;
  picture.setAttribute("viewBox", `0 0 ${popular.length} ${levels}`);
  popular.forEach((item, column) => {
    for (let level = 0; level < levels; level++) {
      const tile = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [name, value] of [["x", column + 0.06], ["y", level + 0.05], ["width", 0.88], ["height", 0.9]]) tile.setAttribute(name, value);
      tile.style.fill = colour(items.codes[item], level);
      picture.append(tile);
    }
  });
}

function itemButton(item, note = "") {
  const button = make("button", {type: "button", className: "item", title: `${items.titles[item]} · id ${items.ids[item]}`});
  button.dataset.item = item;
  if (items.codes) button.append(tiles(items.codes[item]));
  button.append(make("span", {}, items.titles[item]));
  if (note) button.append(make("span", {className: "count"}, note));
  button.addEventListener("click", () => { location.hash = `item=${item}`; });
  return button;
}

function branch(members, depth) {
  const groups = new Map();
  for (const item of members) {
    const code = items.codes[item][depth];
    if (!groups.has(code)) groups.set(code, []);
    groups.get(code).push(item);
  }
  return [...groups.values()].sort((a, b) => b.length - a.length).map(group => node(group, depth + 1));
}

// A node is built when it is opened; one that holds a single item is that item.
function node(members, depth) {
  if (members.length === 1 || depth === sizes.length) return members.length === 1 ? itemButton(members[0]) : leaves(members);
  const codes = items.codes[members[0]];
  const few = members.slice(0, 3).map(item => items.titles[item]).join(" · ");
  const details = make("details", {}, make("summary", {}, tiles(codes, depth),
    make("span", {className: "count"}, `${members.length.toLocaleString("en")} items`), make("span", {className: "few"}, few)));
  details.dataset.prefix = codes.slice(0, depth).join("-");
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(...branch(members, depth));
  });
  return details;
}

function leaves(members) {
  return make("div", {}, ...members.map(item => itemButton(item)));
}

function drawTree() {
  const order = items.ids.map((_, i) => i).sort((a, b) => items.events[b] - items.events[a]);
  if (items.codes) byId("tree").append(...branch(order, 0));
  else byId("tree").append(...order.slice(0, 200).map(item => itemButton(item, `${items.events[item].toLocaleString("en")} events`)));
}

function search() {
  const wanted = byId("search").value.trim().toLowerCase();
  byId("tree").hidden = wanted !== "";
  const found = byId("found");
  found.replaceChildren();
  if (!wanted) return;
  const matches = items.ids.map((_, i) => i).filter(i => items.titles[i].toLowerCase().includes(wanted) || String(items.ids[i]) === wanted);
  matches.sort((a, b) => items.events[b] - items.events[a]);
  found.append(make("p", {className: "soft"}, `${matches.length.toLocaleString("en")} items${matches.length > 30 ? ", the 30 most popular:" : ""}`),
    ...matches.slice(0, 30).map(item => itemButton(item)));
}

function codePath(item) {
  const codes = items.codes[item];
  return make("div", {className: "path"}, ...codes.map((code, level) => {
    const tile = make("span", {className: "tile"});
    tile.style.setProperty("--c", colour(codes, level));
    const digit = data.codes.has_digit && level === codes.length - 1;
    return make("span", {title: digit ? "collision digit" : `level ${level + 1}`}, tile, `${code}`);
  }));
}
