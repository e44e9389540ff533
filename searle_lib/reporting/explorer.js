// The query explorer. It reads the page's JSON, keeps its whole state in the filters and in the address, and shows what
// the state says. Text from data sets enters the page as text nodes and attributes only, never as markup.
"use strict";

const HIT = 10; // a method finds a query if a target is among its first ten images
const LISTED = 20; // queries on a page of the list
const PLOT = {side: 340, start: 44, end: 330}; // of the scatter, in units of its viewBox
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const form = byId("filters");
const controls = [...form.elements].filter((control) => control.name);
const worst = Math.max(HIT, ...data.queries.flatMap((query) => query.ranks)); // the last rank of any target
let matches = []; // the queries that pass the filters, in order
let open = null; // the query on the screen
let points = []; // of the matches in the scatter

// ---- Queries

const source = (image) => `data:image/webp;base64,${data.images[image].webp}`;
const rankOf = (query, method) => query.ranks[method] ?? Infinity;
const finds = (query, method) => rankOf(query, method) <= HIT;
const placeOf = (name) => data.methods.findIndex((method) => method.name === name);
const wanted = () => Object.fromEntries(controls.map((control) => [control.name, control.value]));

function isMatch(query, want) {
  const captions = query.captions.join("\n").toLowerCase();
  const words = want.text.toLowerCase().split(/\s+/).filter(Boolean);
  const [first, second] = [finds(query, placeOf(want.a)), finds(query, placeOf(want.b))];
  const outcome = first ? (second ? "both" : "first") : (second ? "second" : "neither");
  return (!want.dataset || query.dataset === want.dataset)
    && (!want.category || query.category === want.category)
    && (!want.aspect || query.aspects.includes(want.aspect))
    && (!want.kind || query.kind === want.kind)
    && (!want.outcome || want.outcome === outcome)
    && words.every((word) => captions.includes(word))
    && data.methods.every(({name}, method) => {
      const result = want[`method.${name}`];
      return !result || (result === "hit") === finds(query, method);
    });
}

function gap(query, want) { // by how many ranks A is ahead of B
  const [first, second] = [rankOf(query, placeOf(want.a)), rankOf(query, placeOf(want.b))];
  return first === second ? 0 : second - first;
}

function choose(query) { // apply the filters; stay at this query if it passes them
  const want = wanted();
  matches = data.queries.filter((one) => isMatch(one, want));
  if (want.sort) {
    const sign = want.sort === "first" ? -1 : 1;
    const gaps = new Map(matches.map((one) => [one, sign * gap(one, want)]));
    matches.sort((one, other) => gaps.get(one) - gaps.get(other) || 0); // equal gaps keep their order
  }
  open = matches.includes(query) ? query : matches[0] ?? null;
  show();
}

function step(by) {
  const place = Math.min(Math.max(matches.indexOf(open) + by, 0), matches.length - 1);
  if (matches[place] && matches[place] !== open) go(matches[place], "replaceState");
}

function go(query, how) { // open a query, and say in the address which
  open = query;
  show();
  writeAddress(how);
  if (byId("query").getBoundingClientRect().top < 0) byId("query").scrollIntoView();
}

// ---- The address: every control that is not at its default, and the open query

function defaultOf(control) {
  const options = [...(control.options ?? [])];
  return (options.find((option) => option.defaultSelected) ?? options[0])?.value ?? "";
}

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  for (const control of controls) {
    const value = address.get(control.name);
    const isAllowed = !control.options || [...control.options].some((option) => option.value === value);
    control.value = value !== null && isAllowed ? value : defaultOf(control);
  }
  const key = address.get("query") ?? data.example;
  choose(data.queries.find((query) => query.key === key));
}

function writeAddress(how) {
  const changed = controls.filter((control) => control.value !== defaultOf(control));
  const address = new URLSearchParams(changed.map((control) => [control.name, control.value]));
  if (open) address.set("query", open.key);
  history[how](null, "", `#${address}`);
}

// ---- What the page shows

function element(name, attributes, ...children) {
  const isShape = ["circle", "g", "line", "text"].includes(name);
  const made = document.createElementNS(`http://www.w3.org/${isShape ? "2000/svg" : "1999/xhtml"}`, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function button(children, onClick, attributes = {}) {
  const made = element("button", {type: "button", ...attributes}, ...children);
  made.addEventListener("click", onClick);
  return made;
}

function imageButton(image, role, mark = "") {
  const facts = `${role}, image ${data.images[image].id}`;
  const enlarge = () => {
    byId("enlarged").replaceChildren(element("img", {src: source(image), alt: ""}), element("p", {}, facts));
    byId("large").showModal();
  };
  return button([element("img", {src: source(image), alt: facts})], enlarge, {class: `image ${mark}`, title: facts});
}

function answer(query, method) { // what a method says about its target, and its best images
  const {name, colour} = data.methods[method];
  const [rank, precision] = [query.ranks[method], query.precision[method]];
  const lines = [element("h3", {}, element("span", {class: "mark", style: `background: ${colour}`}), name)];
  if (rank === null) {
    const isRanked = query.best[method].length > 0;
    lines.push(element("p", {}, isRanked ? "missed: rank unknown" : "no ranking of this query"));
  }
  else if (finds(query, method)) lines.push(element("p", {class: "found"}, `✓ found at rank ${rank}`));
  else lines.push(element("p", {}, `missed: rank ${rank}`));
  if (precision !== null) lines.push(element("p", {class: "quiet"}, `AP@10 ${(100 * precision).toFixed(1)} %`));
  const names = query.names[method].join(", ");
  if (names) lines.push(element("p", {class: "quiet"}, `pseudo-word near: ${names}`));
  const images = query.best[method].map((image, place) => {
    const score = query.scores[method][place]; // a file of predictions has none
    const role = `rank ${place + 1} of ${name}` + (score === undefined ? "" : `, score ${(score / 1000).toFixed(3)}`);
    if (query.truths.includes(image)) return imageButton(image, `${role}, a target`, "hit");
    if (image === query.reference) return imageButton(image, `${role}, the reference itself`, "self");
    return imageButton(image, role);
  });
  return element("div", {class: "answer"}, element("div", {}, ...lines), element("div", {class: "images"}, ...images));
}

function queryParts(query) {
  const facts = [query.category === "all" ? "" : query.category, data.kinds[query.kind], ...query.aspects];
  const targets = query.truths.map((image, place) => imageButton(image, `target ${place + 1}`, "hit"));
  return [
    element("h2", {}, query.key),
    element("p", {class: "quiet"}, facts.filter(Boolean).join(" · ").replaceAll("_", " ")),
    element("div", {class: "question"},
      element("div", {}, element("h3", {}, "Reference"), imageButton(query.reference, "reference")),
      element("div", {},
        element("h3", {}, "Relative caption"),
        ...query.captions.map((caption) => element("p", {class: "caption"}, `“${caption}”`)),
        element("h3", {}, targets.length > 1 ? `${targets.length} targets` : "Target"),
        element("div", {class: "images"}, ...targets))),
    ...data.methods.map((_, method) => answer(query, method)),
  ];
}

function listItem(query, want) {
  const [first, second] = [want.a, want.b].map((name) => `${name} ${query.ranks[placeOf(name)] ?? "–"}`);
  const parts = [
    element("img", {src: source(query.reference), alt: ""}),
    element("span", {}, query.captions.join("; ")),
    element("span", {class: "quiet"}, `${first} · ${second}`),
  ];
  const openIt = () => {
    go(query, "pushState");
    byId("matches").querySelector("[aria-current]").focus({preventScroll: true});
  };
  return element("li", {}, button(parts, openIt, query === open ? {"aria-current": "true"} : {}));
}

function scatterParts(want) { // one point a query, on logarithmic axes; points of equal ranks are spread a little
  const [a, b] = [placeOf(want.a), placeOf(want.b)];
  const right = (rank) => PLOT.start + (PLOT.end - PLOT.start) * Math.log10(rank) / Math.log10(worst);
  const down = (rank) => PLOT.side - right(rank);
  const line = (name, a1, b1, a2, b2) =>
    element("line", {x1: right(a1), y1: down(b1), x2: right(a2), y2: down(b2), class: name});
  const label = (x, y, anchor, text) => element("text", {x, y, "text-anchor": anchor}, text);
  const [low, middle] = [PLOT.side - 8, PLOT.side / 2];
  const upright = element("g", {transform: "rotate(-90)"}, label(-middle, 12, "middle", `rank under ${want.b}`));
  const parts = [line("", 1, 1, worst, worst), upright, label(middle, low, "middle", `rank under ${want.a}`)];
  for (let rank = 1; rank <= worst; rank *= 10) {
    const name = rank === HIT ? "ten" : "";
    parts.push(line(name, rank, 1, rank, worst), line(name, 1, rank, worst, rank));
    parts.push(label(right(rank), low - 18, "middle", rank), label(PLOT.start - 8, down(rank) + 4, "end", rank));
  }
  const chosen = new Set(matches);
  points = [];
  data.queries.forEach((query, index) => {
    const [first, second] = [query.ranks[a], query.ranks[b]];
    if (first === null || second === null) return;
    const [x, y] = [right(first) + (index * 37 % 11 - 5) * 0.7, down(second) + (index * 53 % 13 - 6) * 0.6];
    const colour = first === second ? {class: "even"} : {fill: data.methods[first < second ? a : b].colour};
    if (chosen.has(query)) points.push({query, x, y, colour});
    else parts.push(element("circle", {cx: x, cy: y, r: 2.5, class: "other"}));
  });
  parts.push(...points.map(({x, y, colour}) => element("circle", {cx: x, cy: y, r: 3.5, ...colour})));
  const here = points.find(({query}) => query === open);
  if (here) parts.push(element("circle", {cx: here.x, cy: here.y, r: 8, class: "open"}));
  return parts;
}

function show() {
  const [want, place] = [wanted(), matches.indexOf(open)];
  const number = (count) => count.toLocaleString("en");
  const first = Math.max(place - (place % LISTED), 0);
  const listed = matches.slice(first, first + LISTED);
  const nothing = [element("p", {}, "No query matches these choices."), button(["Clear all"], () => form.reset())];
  form.querySelectorAll("[data-label]").forEach((option) => {
    option.textContent = option.dataset.label.split("{a}").join(want.a).split("{b}").join(want.b);
  });
  byId("count").textContent = `${number(matches.length)} of ${number(data.queries.length)} queries`;
  byId("place").textContent = `${place + 1} / ${matches.length}`;
  byId("open").replaceChildren(...(open ? queryParts(open) : nothing));
  byId("span").textContent = listed.length ? `Matches ${first + 1} to ${first + listed.length}` : "No matches";
  byId("matches").replaceChildren(...listed.map((query) => listItem(query, want)));
  byId("plot").replaceChildren(...scatterParts(want));
  byId("plot").setAttribute("aria-label", `Rank of each query's first target under ${want.a} and under ${want.b}`);
}

// ---- What the reader does

function change(how) {
  choose(open);
  writeAddress(how);
}

form.addEventListener("input", (event) => change(event.target.name === "text" ? "replaceState" : "pushState"));
form.addEventListener("reset", () => setTimeout(change, 0, "pushState")); // the controls change after this event
form.addEventListener("submit", (event) => event.preventDefault());
for (const [id, by] of [["previous", -1], ["next", 1], ["back", -LISTED], ["on", LISTED]]) {
  byId(id).addEventListener("click", () => step(by));
}
byId("plot").addEventListener("click", (event) => {
  const box = byId("plot").getBoundingClientRect();
  const unit = PLOT.side / box.width;
  const distance = ({x, y}) => Math.hypot(x - (event.clientX - box.left) * unit, y - (event.clientY - box.top) * unit);
  const [nearest] = [...points].sort((one, other) => distance(one) - distance(other));
  if (nearest && distance(nearest) < 16) go(nearest.query, "pushState");
});
byId("large").addEventListener("click", (event) => {
  if (event.target === byId("large")) byId("large").close(); // a click beside the image
});
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input, select") || event.ctrlKey || event.altKey || event.metaKey;
  const by = {ArrowLeft: -1, k: -1, ArrowRight: 1, j: 1}[event.key];
  if (by && !isTyping && !byId("large").open) step(by);
});
window.addEventListener("popstate", readAddress);
readAddress();
