// The page: asks the service every few seconds, shows the answers, and reports a service that does not answer.

import { answerOf } from "./answer.js";
import { Board } from "./plot.js";
import { timecodesOf } from "./timecodes.js";
import { ago, count, element, files, latency, minute, moment, shown, size, span, time } from "./words.js";

const INTERVAL = 3000;
const TIMEOUT = 8000;
const SEARCH_TIMEOUT = 40000;
const SYMBOLS = { good: "✓", warning: "!", bad: "✕", idle: "○", unknown: "?" };
const SCOPES = { file: "file", row: "row", source: "source", operator: "configuration", destination: "destination", nobody: "none" };

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
    const [status, activity, timecodes] = await Promise.all([fetched("api/status"), fetched("api/activity"), fetched("api/timecodes?newest=3")]);
    answered = new Date();
    offset = Date.parse(activity.at) - answered.getTime();
    show(status, activity, timecodes);
  } catch (error) {
    showNoAnswer(error);
  } finally {
    asking = false;
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(refresh, INTERVAL);
  }
}

async function fetched(address) {
  const answer = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error ?? `HTTP status ${answer.status}`);
  return value;
}

// A hidden tab asks for nothing, and at once when it is visible again.
document.addEventListener("visibilitychange", refresh);

function showNoAnswer(error) {
  document.body.classList.add("stale");
  const since = answered ? `No answer since ${moment(new Date(answered.getTime() + offset)).slice(11)}` : "No answer from the service";
  showBanner("unknown", since);
  const reason = error.name === "TimeoutError" ? "The request timed out" : error.name === "TypeError" ? "The service cannot be reached" : error.message;
  place("subline").textContent = `${shown(reason)}. ${answered ? "The values below are from that time. " : ""}Tries again every ${INTERVAL / 1000} s.`;
}

function showBanner(tone, headline) {
  const banner = place("banner");
  banner.dataset.tone = tone;
  banner.querySelector(".badge").textContent = SYMBOLS[tone];
  if (place("headline").textContent !== headline) place("headline").textContent = headline;
  document.title = `${SYMBOLS[tone]} ${headline.slice(0, 60)} · cdc_archiver`;
}

// Showing.

function show(status, activity, timecodes) {
  const now = new Date(Date.parse(activity.at));
  document.body.classList.remove("stale");
  place("rest").hidden = false;
  showBanner(status.words.headline.tone, shown(status.words.headline.text));
  place("version").textContent = status.version;
  place("clock").textContent = `${time(now)} UTC`;
  const named = status.table ? `, table ${status.table}` : "";
  const asOf = status.as_of ? ` · the values below were so at ${moment(new Date(status.as_of))}, when the database answered last` : "";
  place("subline").textContent = shown(`Up for ${ago(new Date(status.started), now).replace(" ago", "")} · database ${status.database}${named}${asOf}`);
  board ??= new Board(document.querySelector(".plots"));
  board.show(activity.minutes);
  rebuild(place("numbers"), numbers(status, now), (all) => all.map((each) => number(...each)));
  rebuild(inside("sources"), [status.sources, status.elsewhere, status.destination, status.words, status.state], () => sources(status, now));
  rebuild(inside("failing"), [activity.failing, activity.forgotten, activity.failing_since, quarantinedAndRefused(status), status.state, status.as_of, status.retried.map((each) => [each.reason, nextTry(each.retry_in)])], () => failing(activity, status, now));
  const known = status.as_of && status.timecodes ? status.timecodes : timecodes;
  rebuild(inside("timecodes"), [known, Math.floor(now / 60000)], () => timecodesOf(known, now, { badge, cell, table, whyButton, path }));
  rebuild(inside("newest"), activity.newest, () => newest(activity.newest, status));
  if (place("minutes").open) rebuild(place("minutes").querySelector("div"), activity.minutes, () => minutesTable(activity.minutes));
}

/** Rebuilds a part of the page if its data changed, and keeps the keyboard focus. */
function rebuild(home, data, build) {
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

const quarantinedAndRefused = (status) => [total(status, "quarantined"), total(status, "refused")];

function numbers(status, now) {
  const own = status.sources;
  const sum = (kind) => (own.length ? own.reduce((all, source) => all + source.state[kind], 0) : null);
  const times = own.map((source) => source.files?.oldest_pending).filter(Boolean).sort();
  const oldest = times.length ? `oldest: ${ago(new Date(times[0]), now)}` : "";
  const [quarantined, refused] = quarantinedAndRefused(status);
  const free = status.destination?.free_bytes;
  const { stream } = status;
  return [
    ["Pending", count(total(status, "pending")), oldest],
    ["In flight", count(sum("in_flight")), own.length ? `${count(sum("queued"))} queued` : ""],
    ["Quarantined", count(quarantined), quarantined ? "no attempts left" : "", quarantined ? "bad" : ""],
    ["Refused", count(refused), refused ? "rows to correct" : "", refused ? "warning" : ""],
    ["Ignored", count(total(status, "ignored")), "by an operator"],
    ["Archived", count(status.archived), "since its start"],
    ["Disk free", size(free), status.destination ? shown(status.destination.path) : ""],
    ["Last sweep", status.last_sweep ? ago(new Date(status.last_sweep), now) : "–", own.length && !status.last_sweep ? "none yet" : ""],
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
    const sentence = status.words.sources[state.name];
    const oldest = counted?.oldest_pending ? new Date(counted.oldest_pending) : null;
    return element("tr", {},
      element("th", { scope: "row" }, shown(state.name), element("span", { class: "more" }, shown(`${host && host !== state.name ? `${host}: ` : ""}${targets.join(", ")}`))),
      cell("State", badge(sentence.tone), element("span", { class: "state-text" }, shown(sentence.text))),
      cell("Queued", count(state.queued)),
      cell("In flight", count(state.in_flight)),
      ...["pending", "quarantined", "refused", "ignored"].map((kind) => cell(kind[0].toUpperCase() + kind.slice(1), count(counted?.[kind]))),
      cell("Oldest pending", oldest ? moment(oldest) : "–"),
    );
  });
  for (const other of status.elsewhere) {
    rows.push(element("tr", {}, element("th", { scope: "row" }, shown(other.name)), element("td", { colspan: 8, "data-label": "State" }, badge("idle"), element("span", { class: "state-text" }, shown(`held by another archiver: ${other.holder}`)))));
  }
  if (status.destination) {
    const sentence = status.words.destination;
    const free = status.destination.free_bytes === null ? "" : `, ${size(status.destination.free_bytes)} free`;
    rows.push(element("tr", {}, element("th", { scope: "row" }, "Archive", element("span", { class: "more" }, shown(status.destination.path))), element("td", { colspan: 8, "data-label": "State" }, badge(sentence.tone), element("span", { class: "state-text" }, shown(sentence.text) + free))));
  }
  if (!rows.length) return element("p", { class: "quiet" }, { standby: "Another archiver holds all sources.", "no database": "Not known: the database has not answered since this service's start." }[status.state] ?? "This service holds no source.");
  const heads = ["Source", "State", "Queued", "In flight", "Pending", "Quarantined", "Refused", "Ignored", "Oldest pending"];
  return table(heads, rows, "sources");
}

function table(heads, rows, kind) {
  return element("table", { class: kind }, element("thead", {}, element("tr", {}, heads.map((head) => element("th", { scope: "col" }, head)))), element("tbody", {}, rows));
}

/** A button that searches for a file. */
function whyButton(id, kind) {
  return element("button", { type: "button", class: "link", "data-key": `${kind}-${id}`, "aria-label": `Why is file ${id} not in the archive?`, click: () => search(String(id), true) }, String(id));
}

function path(text) {
  const [, directory, name] = /^(.*\/)?([^]*)$/.exec(text);
  return element("span", { class: "path", title: shown(text) }, element("span", { class: "directory" }, shown(directory ?? "")), element("b", {}, shown(name)));
}

function failing(activity, status, now) {
  const [quarantined, refused] = quarantinedAndRefused(status);
  const known = activity.failing.filter((each) => ["file", "row"].includes(each.fault)).reduce((sum, each) => sum + each.files, 0);
  const before = (quarantined ?? 0) + (refused ?? 0) > known ? element("p", { class: "note" }, `${files((quarantined ?? 0) + (refused ?? 0))} quarantined or refused in all, some before this service's start: `, element("code", {}, "cdc-archiver list")) : "";
  if (!activity.failing.length) {
    const since = moment(new Date(activity.failing_since));
    const text = status.state === "standby" ? "Not known: another archiver has these files."
      : status.as_of || !status.sources.length ? "Not known: the database does not answer. None was failing before."
      : `None: every file that failed here since ${since} has been archived or ignored by now.`;
    return [element("p", { class: "quiet" }, text), before];
  }
  const groups = activity.failing.map((each) => element("li", {},
    element("h3", {}, badge(each.fault === "nobody" ? "warning" : "bad"), `${files(each.files)}: `, element("code", {}, each.reason), element("span", {}, each.words !== each.reason ? ` (${each.words}), ` : ", "), element("span", { class: "quiet" }, `scope: ${SCOPES[each.fault]}`)),
    element("p", {}, `Newest, ${moment(new Date(each.newest.at))}, of ${shown(each.newest.source)}: `, whyButton(each.newest.id, "failing"), " ", path(each.newest.path)),
    each.newest.detail ? element("p", { class: "detail" }, shown(each.newest.detail)) : "",
    status.as_of ? "" : tries(status.retried.filter((other) => other.reason === each.reason), each.files),
  ));
  const more = activity.forgotten ? element("p", { class: "note" }, "More files failed than are kept in memory; the table has all of them.") : "";
  return [element("ul", { class: "groups" }, groups), more, before];
}

const nextTry = (seconds) => (seconds === null ? "" : seconds < 1 ? "now" : `in ${span(seconds)}`);

/** How many files of a reason are tried again, and when the first of them. */
function tries(groups, all) {
  const retried = groups.reduce((sum, each) => sum + each.files, 0);
  const times = groups.map((each) => each.retry_in).filter((each) => each !== null);
  const when = times.length ? `, the next ${nextTry(Math.min(...times))}` : "";
  return element("p", { class: "quiet" }, retried === 0 ? "Given up." : `${retried === all ? "Tried again" : `${count(retried)} of them tried again`}${when}.`);
}

function newest(found, status) {
  if (!found.length) return element("p", { class: "quiet" }, status.archived ? "None in memory." : "None since this service's start.");
  const rows = found.map((each) => element("tr", {},
    cell("Time", time(new Date(each.at))),
    cell("Id", whyButton(each.id, "newest")),
    cell("Source", shown(each.source)),
    cell("Path", path(each.path)),
    cell("Size", size(each.size)),
    cell("After", each.adopted ? "adopted" : each.latency === null ? "found by a sweep" : latency(each.latency)),
  ));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "newest-title" }, table(["Time", "Id", "Source", "Path", "Size", "After"], rows, "newest"));
}

function minutesTable(minutes) {
  const rows = minutes.toReversed().map((each) => element("tr", {},
    element("th", { scope: "row" }, minute(new Date(each.at))), cell("Files", count(each.files)), cell("Unsuccessful attempts", count(each.failed)), cell("Bytes", size(each.size)), cell("50 % within", latency(each.p50)), cell("99 % within", latency(each.p99))));
  return table(["Minute", "Files", "Unsuccessful attempts", "Bytes", "50 % within", "99 % within"], rows, "minutes");
}

// Searching.

let searches = 0;

async function search(query, move = false) {
  place("question").value = query;
  history.replaceState(null, "", `#why=${encodeURIComponent(query)}`);
  const home = place("answer");
  const turn = ++searches;
  home.replaceChildren(element("p", { class: "quiet" }, "Searching …"));
  if (move) place("search").scrollIntoView({ block: "start" });
  let found;
  try {
    const answer = await fetch(`api/why?q=${encodeURIComponent(query)}`, { cache: "no-store", signal: AbortSignal.timeout(SEARCH_TIMEOUT) });
    found = await answer.json();
  } catch {
    found = { error: "The service does not answer." };
  }
  if (turn !== searches) return;
  home.replaceChildren(...answerOf(found, (id) => search(String(id))));
}

function searchFromAddress() {
  const found = /^#why=(.+)$/.exec(location.hash);
  if (!found) return;
  try {
    search(decodeURIComponent(found[1]), true);
  } catch {
    // not a valid encoding
  }
}

document.querySelector("#search form").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = place("question").value.trim();
  if (query) search(query);
});
place("minutes").addEventListener("toggle", refresh);
addEventListener("hashchange", searchFromAddress);

await refresh();
searchFromAddress();
