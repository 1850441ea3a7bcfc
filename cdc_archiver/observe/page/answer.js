// What `why` answers, for a person who looks at a page.

import { element, moment, shown, size } from "./words.js";

const PLACES = {
  right: "is there, with the row's md5",
  there: "is there",
  wrong: "is there, and is not the row's file",
  absent: "is not there",
  unreadable: "is there, and cannot be read",
  "not looked": "was not looked at",
};
const SEEN = {
  ok: "it is there now",
  missing: "it is not there now",
  unreadable: "it is there now, and the account may not read it",
  not_a_file: "what is there now is no regular file",
  cannot_tell: "nobody can tell",
  unreachable: "its host cannot be reached now",
  root_gone: "the source's root is missing or empty now: its disk is not mounted",
};

/**
 * The answer as elements.
 *
 * @param found what /api/why says
 * @param ask called with an id, to ask for that file
 */
export function answerOf(found, ask) {
  if (found.error) return [element("p", { class: "note", role: "alert" }, shown(found.error))];
  if (found.answer === null) return several(found, ask);
  if (!found.facts) return [element("p", { class: "sentence" }, shown(found.answer))];
  const { facts } = found;
  return [
    element("p", { class: "sentence" }, shown(found.answer)),
    found.next ? element("p", {}, `Next: ${shown(found.next)}`) : "",
    ...found.advice.map(({ when, command }) => element("p", {}, `${shown(when)}: `, element("code", {}, shown(command)))),
    element("dl", { class: "facts" }, ...rows(facts).flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, shown(text))])),
    ...tried(facts),
    element("p", { class: "quiet" }, "md5 sums are shortened here; ", element("code", {}, `cdc-archiver why ${facts.record.id}`), " tells them whole."),
  ].filter(Boolean);
}

function several(found, ask) {
  const matches = found.matches.map(({ id, state, path }) => element("li", {}, element("button", { type: "button", class: "link", click: () => ask(id) }, String(id)), ` ${state} `, element("span", { class: "path" }, shown(path))));
  return [element("p", { class: "sentence" }, `${found.more ? "More than " : ""}${found.matches.length} files match: which one?`), element("ul", { class: "matches" }, matches)];
}

function rows(facts) {
  const { record, place, at_source: source, service } = facts;
  const attempts = record.failed_copy_attempts === null ? "none" : String(record.failed_copy_attempts);
  const note = place.note ? ` (${place.note})` : "";
  return [
    ["Row", `${record.id} of ${facts.table}`],
    ["State", facts.state],
    ["Path", record.path],
    ["Target", `${record.instance_id}${facts.source ? ` of the source ${facts.source}` : ""}`],
    ["Registered", `timestamp ${record.timestamp ? moment(new Date(record.timestamp)) : "none"}, action ${record.action}, pub_id ${record.pub_id}`],
    ["Failed attempts", `${attempts} (given up at ${facts.max_attempts})`],
    ["In the archive", place.path === null ? `nowhere: ${place.refused_why}` : `${place.path} ${PLACES[place.state] ?? place.state}${place.size === null ? "" : `, ${size(place.size)}`}${note}`],
    ["On the source", source.path === null ? `not looked at: ${source.note}` : source.state === null ? `${source.path} was not looked at: ${source.note}` : `${source.path}: ${SEEN[source.state] ?? source.state}`],
    ["In the service", inService(service)],
  ];
}

function inService(service) {
  if (!service.answered) return `not asked: ${service.note}`;
  const hand = service.in_hand;
  if (!hand) return `${service.state}; it does not have this file in hand`;
  const again = hand.retry_in === null ? "" : `, again in ${Math.round(hand.retry_in)} s`;
  return `${service.state}; it has this file in hand: ${hand.state}${again}, told of it by the ${hand.origin}`;
}

function tried(facts) {
  if (facts.no_history) return [element("p", { class: "quiet" }, shown(`What was tried is not known: ${facts.no_history}`))];
  if (!facts.attempts.length) return [element("p", { class: "quiet" }, "The history has nothing about it.")];
  const lines = facts.attempts.toReversed().map((each) => element("li", {}, `${moment(new Date(each.at))} ${each.result}${each.reason ? `, ${each.reason}` : ""}`, each.archived_path ? element("span", { class: "path" }, ` ${shown(each.source_path)} → ${shown(each.archived_path)}`) : "", each.detail ? element("p", { class: "detail" }, shown(each.detail)) : ""));
  return [element("h3", {}, `What was tried (${facts.attempts.length})`), element("ol", { class: "tried" }, lines)];
}
