function showItem(item) {
  const panel = byId("panel");
  const list = (title, members) => members.length ? [make("h3", {}, title), make("ol", {className: "list plain"}, ...members.map(i => make("li", {}, itemButton(i))))] : [];
  const number = data.protocol.num_requests.toLocaleString("en");
  const shown = data.users.map((user, row) => row).filter(row => data.users[row].lists[data.system.method].includes(item));
  panel.replaceChildren(
    make("h3", {style: "margin-top:0"}, items.titles[item]),
    make("p", {className: "soft"}, `id ${items.ids[item]} · ${items.events[item].toLocaleString("en")} events · recommended in ${items.recommended[item].toLocaleString("en")} of ${number} test lists`),
    ...(items.codes ? [codePath(item)] : []),
    ...list("Nearest items", items.neighbours[item]),
  );
  if (shown.length) {
    const links = shown.map(row => {
      const button = make("button", {type: "button", className: "item"}, make("span", {}, `user ${data.users[row].id}`));
      button.addEventListener("click", () => { byId("who").value = row; showUser(); byId("users").scrollIntoView(); });
      return make("li", {}, button);
    });
    panel.append(make("h3", {}, "Recommended, among the users below, to"), make("ol", {className: "list plain"}, ...links));
  }
  document.querySelectorAll(".item[aria-current]").forEach(e => e.removeAttribute("aria-current"));
  document.querySelectorAll(`.item[data-item="${item}"]`).forEach(e => e.setAttribute("aria-current", "true"));
}

function day(seconds) {
  return seconds === null || seconds < 0 ? "" : new Date(seconds * 1000).toISOString().slice(0, 10);
}

function showUser() {
  const user = data.users[byId("who").value];
  const method = byId("how").value;
  const targets = new Set(user.targets);
  const line = (item, kind, note) => make("li", {className: kind}, itemButton(item, note));
  byId("past").replaceChildren();
  let shownDay = "";
  for (const [item, time, positive] of [...user.history].reverse()) {
    if (day(time) !== shownDay) byId("past").append(make("li", {className: "day"}, shownDay = day(time)));
    byId("past").append(line(item, positive ? "" : "signal", ""));
  }
  if (user.num_events > user.history.length) byId("past").append(make("li", {className: "soft"}, `and ${user.num_events - user.history.length} earlier events`));
  if (!user.num_events) byId("past").append(make("li", {className: "soft"}, "nothing: this user was new"));
  byId("proposed").replaceChildren(...user.lists[method].map(item => line(item, targets.has(item) ? "hit" : "", "")));
  const proposed = new Set(user.lists[method]);
  byId("next").replaceChildren(...user.targets.map(item => line(item, proposed.has(item) ? "hit" : "", "")));
  const hits = user.lists[method].filter(item => targets.has(item)).length;
  byId("score").textContent = `${hits} of ${user.lists[method].length} proposed items were among the ${targets.size} of the next step, ${day(user.time)}`;
}

function follow() {
  const match = /^#item=(\d+)$/.exec(location.hash);
  if (match && Number(match[1]) < items.ids.length) showItem(Number(match[1]));
}

drawMosaic();
drawTree();
data.users.forEach((user, row) => byId("who").append(make("option", {value: row}, `${user.id}`)));
Object.entries(data.reports).forEach(([name, report]) => byId("how").append(make("option", {value: name}, report.label)));
byId("who").addEventListener("change", showUser);
byId("how").addEventListener("change", showUser);
byId("search").addEventListener("input", search);
window.addEventListener("hashchange", follow);
if (data.users.length) showUser();
follow();
