const NUM_NEIGHBOURS = 8;

// Squarified tiles (Bruls, Huizing and van Wijk 2000): rows of the shorter side, as long as they become squarer.
function squarified(values, x, y, width, height) {
  const scale = width * height / values.reduce((a, b) => a + b, 0), boxes = [];
  let start = 0;
  while (start < values.length) {
    const side = Math.min(width, height);
    const worst = (sum, low, high) => Math.max(side * side * high / (sum * sum), sum * sum / (side * side * low));
    let end = start + 1, sum = values[start] * scale;
    while (end < values.length) {
      const next = values[end] * scale;
      if (worst(sum + next, next, values[start] * scale) > worst(sum, values[end - 1] * scale, values[start] * scale)) break;
      sum += next; end++;
    }
    const thick = sum / side;
    let at = 0;
    for (let i = start; i < end; i++) {
      const long = values[i] * scale / thick;
      boxes.push(width >= height ? [x, y + at, thick, long] : [x + at, y, long, thick]);
      at += long;
    }
    if (width >= height) { x += thick; width -= thick; } else { y += thick; height -= thick; }
    start = end;
  }
  return boxes;
}

function shape(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function rectangle([x, y, width, height], name) {
  return shape("rect", {class: name, x: x.toFixed(1), y: y.toFixed(1), width: Math.max(width, 0).toFixed(1), height: Math.max(height, 0).toFixed(1)});
}

// First codes of like hue stand together: eight parts of the circle, each as large as it has items.
function parts() {
  const found = Array.from({length: 8}, () => []);
  for (const group of data.groups) found[Math.floor(8 * (rankOfFirst.get(group.code) ?? 0) / firstCodes.length)].push(group);
  const size = part => part.reduce((sum, group) => sum + group.items, 0);
  return found.filter(part => part.length).map(part => [part, size(part)]).sort((a, b) => b[1] - a[1]);
}

function drawTiles() {
  const box = byId("tiles"), width = box.clientWidth, height = box.clientHeight;
  const picture = shape("svg", {width, height});
  const found = parts();
  squarified(found.map(part => part[1]), 0, 0, width, height).forEach((place, i) => {
    const groups = found[i][0];
    squarified(groups.map(group => group.items), ...place).forEach((own, j) => picture.append(groupTile(groups[j], own)));
  });
  box.replaceChildren(picture);
}

function groupTile(group, place) {
  const tile = shape("g", {"data-prefix": group.code});
  const words = group.words.join(" "), hue = (360 * rankOfFirst.get(group.code) / firstCodes.length).toFixed(0);
  tile.append(shape("title", {}, `code ${group.code}: ${group.items.toLocaleString("en")} items${words ? ` · ${words}` : ""}\n${group.titles.join("\n")}`));
  const second = group.children.length ? group.children : [[0, 1]];
  squarified(second.map(child => child[1]), ...place).forEach((part, i) => {
    const rect = rectangle(part, "child"), light = 0.035 * Math.sin(second[i][0] * 2.4);
    rect.style.fill = `oklch(calc(var(--tile-l) + ${light.toFixed(3)}) .09 ${hue})`;
    tile.append(rect);
  });
  tile.append(rectangle(place, "frame"));
  label(tile, group, ...place);
  tile.addEventListener("click", () => openBranch(group.code));
  return tile;
}

// As many of its words as fit, one a line; its number where it has none.
function label(tile, group, x, y, width, height) {
  const fitting = (group.words.length ? group.words : [`${group.code}`]).filter(word => word.length * 8 + 12 < width);
  const lines = fitting.slice(0, Math.floor((height - 8) / 14));
  lines.forEach((word, i) => tile.append(shape("text", {x: x + 7, y: y + 17 + 14 * i}, word)));
  if (lines.length && height > 32 + 14 * lines.length && width > 64)
    tile.append(shape("text", {class: "n", x: x + 7, y: y + 17 + 14 * lines.length}, `${group.items.toLocaleString("en")} items`));
}

function openBranch(code) {
  const found = document.querySelector(`#tree > [data-prefix="${code}"]`);
  const only = items.codes.findIndex(codes => codes[0] === code);
  const target = found ?? document.querySelector(`#tree > [data-item="${only}"]`);
  if (!target) return;
  if (found) found.open = true;
  target.scrollIntoView({block: "center"});
  (found ? found.querySelector("summary") : target).focus({preventScroll: true});
}

// Items with most first codes in common, then the most popular ones; the collision digit does not count.
function prefixNeighbours(item) {
  const own = items.codes[item], levels = data.system.num_levels;
  const near = [];
  items.codes.forEach((codes, other) => {
    let depth = 0;
    while (depth < levels && codes[depth] === own[depth]) depth++;
    if (depth && other !== item) near.push([other, depth]);
  });
  near.sort((a, b) => b[1] - a[1] || items.events[b[0]] - items.events[a[0]] || a[0] - b[0]);
  return near.slice(0, NUM_NEIGHBOURS);
}

function showItem(item) {
  const codes = items.codes[item];
  const counted = data.system.events === null ? "" : ` · ${items.events[item].toLocaleString("en")} events`;
  const panel = byId("panel");
  panel.replaceChildren(make("h3", {className: "first"}, items.titles[item]), make("p", {className: "soft"}, `id ${items.ids[item]}${counted}`), codePath(item));
  let list = null, depth = 0;
  for (const [other, shared] of prefixNeighbours(item)) {
    if (shared !== depth) {
      depth = shared;
      list = make("ol", {className: "list plain"});
      panel.append(make("div", {className: "shared"}, tiles(codes, depth), depth === data.system.num_levels ? "the same codes" : `${depth} first code${depth > 1 ? "s" : ""} in common`), list);
    }
    list.append(make("li", {}, itemButton(other)));
  }
  if (!list) panel.append(make("p", {className: "soft"}, "No other item shares its first code."));
  document.querySelectorAll(".item[aria-current]").forEach(e => e.removeAttribute("aria-current"));
  document.querySelectorAll(`.item[data-item="${item}"]`).forEach(e => e.setAttribute("aria-current", "true"));
  document.querySelectorAll(".map").forEach((map, level) => map.querySelectorAll("circle").forEach(dot => {
    dot.classList.toggle("on", Number(dot.dataset.code) === codes[level]);
  }));
}

function follow() {
  const match = /^#item=(\d+)$/.exec(location.hash);
  if (match && Number(match[1]) < items.ids.length) showItem(Number(match[1]));
}

drawMosaic();
drawTree();
drawTiles();
byId("search").addEventListener("input", search);
window.addEventListener("resize", drawTiles);
window.addEventListener("hashchange", follow);
follow();
