// The page: asks the service every few seconds, shows what it says, and says so when it says nothing.

import { answerOf } from "./answer.js";
import { Board } from "./plot.js";
import { ago, count, element, files, latency, minute, moment, shown, size, time } from "./words.js";

const EVERY = 3000;
const PATIENCE = 8000;
const SYMBOLS = { good: "✓", warning: "!", bad: "✕", idle: "○", unknown: "?" };
const FAULTS = { file: "the file's", row: "the row's", source: "the source's", operator: "its set-up", destination: "this machine's", nobody: "nobody's" };

const place = (id) => document.getElementById(id);
const inside = (id) => document.querySelector(`#${id} > div`);
const badge = (tone) => element("span", { class: "badge", "data-tone": tone, "aria-hidden": "true" }, SYMBOLS[tone]);

let board = null;
let answered = null;
let offset = 0;
let timer = 0;
let asking = false;
const last = new Map();

// Asking.

async function refresh() {
  clearTimeout(timer);
  if (document.hidden || asking) return;
  asking = true;
  try {
    const [status, activity] = await Promise.all([fetched("api/status"), fetched("api/activity")]);
    answered = new Date();
    offset = Date.parse(activity.at) - answered.getTime();
    show(status, activity);
  } catch (error) {
    sayNoAnswer(error);
  } finally {
    asking = false;
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(refresh, EVERY);
  }
}

async function fetched(address) {
  const answer = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error ?? `it answers ${answer.status}`);
  return value;
}

// Nobody looks at a hidden tab: it asks for nothing, and at once when it is looked at again.
document.addEventListener("visibilitychange", refresh);

function sayNoAnswer(error) {
  document.body.classList.add("stale");
  const since = answered ? `No answer since ${moment(new Date(answered.getTime() + offset)).slice(11)}` : "No answer from the service";
  say("unknown", since);
  const words = error.name === "TimeoutError" ? "It takes too long" : error.name === "TypeError" ? "It cannot be reached" : error.message;
  place("subline").textContent = `${shown(words)}. ${answered ? "What follows is how things were then. " : ""}Asking again every ${EVERY / 1000} s.`;
}

function say(tone, words) {
  const banner = place("banner");
  banner.dataset.tone = tone;
  banner.querySelector(".badge").textContent = SYMBOLS[tone];
  if (place("headline").textContent !== words) place("headline").textContent = words;
  document.title = `${SYMBOLS[tone]} ${words.slice(0, 60)} · cdc_archiver`;
}

// Showing.

function show(status, activity) {
  const now = new Date(Date.parse(activity.at));
  document.body.classList.remove("stale");
  place("rest").hidden = false;
  say(status.words.headline.tone, shown(status.words.headline.text));
  place("version").textContent = status.version;
  place("clock").textContent = `${time(now)} UTC`;
  const table = status.table ? `, table ${status.table}` : "";
  place("subline").textContent = shown(`Up for ${ago(new Date(status.started), now).replace(" ago", "")} · database ${status.database}${table}`);
  board ??= new Board(document.querySelector(".plots"));
  board.show(activity.minutes);
  renew(place("numbers"), numbers(status, now), (all) => all.map((each) => number(...each)));
  renew(inside("sources"), [status.sources, status.elsewhere, status.destination, status.words, status.state], () => sources(status, now));
  renew(inside("failing"), [activity.failing, activity.forgotten, givenUp(status), status.state], () => failing(activity, status, now));
  renew(inside("newest"), activity.newest, () => newest(activity.newest, status));
  if (place("minutes").open) renew(place("minutes").querySelector("div"), activity.minutes, () => minutesTable(activity.minutes));
}

/** Builds a part of the page anew where it has changed, and leaves the keyboard where it was. */
function renew(home, data, build) {
  const key = JSON.stringify(data);
  if (last.get(home) === key) return;
  last.set(home, key);
  const focused = home.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  home.replaceChildren(...[build(data)].flat());
  if (focused) home.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function total(status, kind) {
  const counted = status.sources.filter((source) => source.files).map((source) => source.files[kind]);
  return counted.length ? counted.reduce((sum, each) => sum + each, 0) : null;
}

const givenUp = (status) => [total(status, "quarantined"), total(status, "refused")];

function numbers(status, now) {
  const mine = status.sources;
  const sum = (kind) => (mine.length ? mine.reduce((all, source) => all + source.state[kind], 0) : null);
  const times = mine.map((source) => source.files?.oldest_pending).filter(Boolean).sort();
  const oldest = times.length ? `oldest: ${ago(new Date(times[0]), now)}` : "";
  const [quarantined, refused] = givenUp(status);
  const free = status.destination?.free_bytes;
  const { stream } = status;
  return [
    ["Pending", count(total(status, "pending")), oldest],
    ["In flight", count(sum("in_flight")), mine.length ? `${count(sum("queued"))} queued` : ""],
    ["Quarantined", count(quarantined), quarantined ? "no tries left" : "", quarantined ? "bad" : ""],
    ["Refused", count(refused), refused ? "rows to correct" : "", refused ? "warning" : ""],
    ["Ignored", count(total(status, "ignored")), "by a person"],
    ["Archived", count(status.archived), "since its start"],
    ["Disk free", size(free), status.destination ? shown(status.destination.path) : ""],
    ["Last sweep", status.last_sweep ? ago(new Date(status.last_sweep), now) : "–", status.last_sweep ? "" : "none yet"],
    ["Stream", stream ? (stream.connected ? "open" : "none") : "–", stream?.connected ? stream.position : shown(stream?.why ?? ""), stream && !stream.connected ? "warning" : ""],
  ];
}

function number(name, value, more, tone) {
  return element("div", { "data-tone": tone || null }, element("dt", {}, name), element("dd", {}, tone ? badge(tone) : "", element("span", { class: "value" }, value)), element("dd", { class: "more" }, more || "\u00a0"));
}

function cell(label, ...children) {
  return element("td", { "data-label": label }, ...children);
}

function sources(status, now) {
  const rows = status.sources.map(({ state, targets, host, files: counted }) => {
    const said = status.words.sources[state.name];
    const oldest = counted?.oldest_pending ? new Date(counted.oldest_pending) : null;
    return element("tr", {},
      element("th", { scope: "row" }, shown(state.name), element("span", { class: "more" }, shown(`${host && host !== state.name ? `${host}: ` : ""}${targets.join(", ")}`))),
      cell("State", badge(said.tone), element("span", { class: "words" }, shown(said.text))),
      cell("Queued", count(state.queued)),
      cell("In flight", count(state.in_flight)),
      ...["pending", "quarantined", "refused", "ignored"].map((kind) => cell(kind[0].toUpperCase() + kind.slice(1), count(counted?.[kind]))),
      cell("Oldest pending", oldest ? moment(oldest) : "–"),
    );
  });
  for (const other of status.elsewhere) {
    rows.push(element("tr", {}, element("th", { scope: "row" }, shown(other.name)), element("td", { colspan: 8, "data-label": "State" }, badge("idle"), element("span", { class: "words" }, shown(`another archiver's: ${other.holder}`)))));
  }
  if (status.destination) {
    const said = status.words.destination;
    const free = status.destination.free_bytes === null ? "" : `, ${size(status.destination.free_bytes)} free`;
    rows.push(element("tr", {}, element("th", { scope: "row" }, "Archive", element("span", { class: "more" }, shown(status.destination.path))), element("td", { colspan: 8, "data-label": "State" }, badge(said.tone), element("span", { class: "words" }, shown(said.text) + free))));
  }
  if (!rows.length) return element("p", { class: "quiet" }, status.state === "standby" ? "Another archiver has them." : "None is this service's yet.");
  const heads = ["Source", "State", "Queued", "In flight", "Pending", "Quarantined", "Refused", "Ignored", "Oldest pending"];
  return table(heads, rows, "sources");
}

function table(heads, rows, kind) {
  return element("table", { class: kind }, element("thead", {}, element("tr", {}, heads.map((head) => element("th", { scope: "col" }, head)))), element("tbody", {}, rows));
}

/** A button that asks why. */
function asks(id, kind) {
  return element("button", { type: "button", class: "link", "data-key": `${kind}-${id}`, "aria-label": `Why? Tell of file ${id}`, click: () => search(String(id), true) }, String(id));
}

function path(text) {
  const [, directory, name] = /^(.*\/)?([^]*)$/.exec(text);
  return element("span", { class: "path", title: shown(text) }, element("span", { class: "directory" }, shown(directory ?? "")), element("b", {}, shown(name)));
}

function failing(activity, status, now) {
  const [quarantined, refused] = givenUp(status);
  const known = activity.failing.filter((each) => ["file", "row"].includes(each.fault)).reduce((sum, each) => sum + each.files, 0);
  const before = (quarantined ?? 0) + (refused ?? 0) > known ? element("p", { class: "note" }, `${files((quarantined ?? 0) + (refused ?? 0))} given up in all, some of them before this service's start: `, element("code", {}, "cdc-archiver list")) : "";
  if (!activity.failing.length) {
    const elsewhere = status.state === "standby";
    const words = elsewhere ? "Not known: another archiver has these files." : "Nothing: whatever failed since this service's start is archived, or was given up, by now.";
    return [element("p", { class: "quiet" }, words), before];
  }
  const groups = activity.failing.map((each) => element("li", {},
    element("h3", {}, badge(each.fault === "nobody" ? "warning" : "bad"), `${files(each.files)}: `, element("code", {}, each.reason), element("span", {}, each.words !== each.reason ? ` (${each.words}), ` : ", "), element("span", { class: "quiet" }, `${FAULTS[each.fault]} fault`)),
    element("p", {}, `Newest, ${moment(new Date(each.newest.at))}, of ${shown(each.newest.source)}: `, asks(each.newest.id, "failing"), " ", path(each.newest.path)),
    each.newest.detail ? element("p", { class: "detail" }, shown(each.newest.detail)) : "",
  ));
  const more = activity.forgotten ? element("p", { class: "note" }, "There were more than are kept in memory; the table has all of them.") : "";
  return [element("ul", { class: "groups" }, groups), more, before];
}

function newest(found, status) {
  if (!found.length) return element("p", { class: "quiet" }, status.archived ? "None that is remembered." : "None since this service's start.");
  const rows = found.map((each) => element("tr", {},
    cell("Time", time(new Date(each.at))),
    cell("Id", asks(each.id, "newest")),
    cell("Source", shown(each.source)),
    cell("Path", path(each.path)),
    cell("Size", size(each.size)),
    cell("After", each.adopted ? "was here already" : each.latency === null ? "found by a sweep" : latency(each.latency)),
  ));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "newest-title" }, table(["Time", "Id", "Source", "Path", "Size", "After"], rows, "newest"));
}

function minutesTable(minutes) {
  const rows = minutes.toReversed().map((each) => element("tr", {},
    element("th", { scope: "row" }, minute(new Date(each.at))), cell("Files", count(each.files)), cell("Failed tries", count(each.failed)), cell("Bytes", size(each.size)), cell("50 % within", latency(each.p50)), cell("99 % within", latency(each.p99))));
  return table(["Minute", "Files", "Failed tries", "Bytes", "50 % within", "99 % within"], rows, "minutes");
}

// Searching.

let asked = 0;

async function search(question, move = false) {
  place("question").value = question;
  history.replaceState(null, "", `#why=${encodeURIComponent(question)}`);
  const home = place("answer");
  const mine = ++asked;
  home.replaceChildren(element("p", { class: "quiet" }, "Looking …"));
  if (move) place("search").scrollIntoView({ block: "start" });
  let found;
  try {
    const answer = await fetch(`api/why?q=${encodeURIComponent(question)}`, { cache: "no-store", signal: AbortSignal.timeout(40000) });
    found = await answer.json();
  } catch {
    found = { error: "The service gives no answer." };
  }
  if (mine !== asked) return;
  home.replaceChildren(...answerOf(found, (id) => search(String(id))));
}

function searchAsAddressed() {
  const question = /^#why=(.+)$/.exec(location.hash);
  if (!question) return;
  try {
    search(decodeURIComponent(question[1]), true);
  } catch {
    // no question that anybody typed
  }
}

document.querySelector("#search form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = place("question").value.trim();
  if (question) search(question);
});
place("minutes").addEventListener("toggle", refresh);
addEventListener("hashchange", searchAsAddressed);

await refresh();
searchAsAddressed();
