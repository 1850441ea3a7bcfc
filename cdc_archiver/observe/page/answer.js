// Shows the answer of `why`.

import { element, moment, shown, size } from "./words.js";

const PLACES = {
  right: "exists, with the row's md5",
  there: "exists",
  wrong: "exists, but is not the row's file",
  absent: "does not exist",
  unreadable: "exists, but cannot be read",
  "not looked": "was not examined",
};
const AT_SOURCE = {
  ok: "it exists now",
  missing: "it does not exist now",
  unreadable: "it exists now, but the account has no permission to read it",
  not_a_file: "it is not a regular file now",
  cannot_tell: "it cannot be examined",
  unreachable: "its host cannot be reached now",
  root_gone: "the source's root is missing or empty now: its disk is not mounted",
};

/**
 * The answer as elements.
 *
 * @param found the answer of /api/why
 * @param ask called with an id, to search for that file
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
    ...attempts(facts),
    element("p", { class: "quiet" }, "md5 sums are shortened here; in full: ", element("code", {}, `cdc-archiver why ${facts.record.id}`)),
  ].filter(Boolean);
}

function several(found, ask) {
  const matches = found.matches.map(({ id, state, path }) => element("li", {}, element("button", { type: "button", class: "link", click: () => ask(id) }, String(id)), ` ${state} `, element("span", { class: "path" }, shown(path))));
  return [element("p", { class: "sentence" }, `${found.more ? "More than " : ""}${found.matches.length} files match; choose one:`), element("ul", { class: "matches" }, matches)];
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
    ["Failed attempts", `${attempts} (quarantined at ${facts.max_attempts})`],
    ["In the archive", place.path === null ? `no place: ${place.refused_why}` : `${place.path} ${PLACES[place.state] ?? place.state}${place.size === null ? "" : `, ${size(place.size)}`}${note}`],
    ["On the source", source.path === null ? `not examined: ${source.note}` : source.state === null ? `${source.path} was not examined: ${source.note}` : `${source.path}: ${AT_SOURCE[source.state] ?? source.state}${source.note && `; ${source.note}`}`],
    ["In the service", inService(service)],
  ];
}

function inService(service) {
  if (!service.answered) return `not asked: ${service.note}`;
  const hand = service.in_hand;
  if (!hand) return `${service.state}; this file is not in flight`;
  const retry = hand.retry_in === null ? "" : `, next attempt in ${Math.round(hand.retry_in)} s`;
  return `${service.state}; this file is in flight: ${hand.state}${retry}, found by the ${hand.origin}`;
}

function attempts(facts) {
  if (facts.no_history) return [element("p", { class: "quiet" }, shown(`Attempts are not known: ${facts.no_history}`))];
  if (!facts.attempts.length) return [element("p", { class: "quiet" }, "The history has no entry for it.")];
  const lines = facts.attempts.toReversed().map((each) => element("li", {}, `${moment(new Date(each.at))} ${each.result}${each.reason ? `, ${each.reason}` : ""}`, each.archived_path ? element("span", { class: "path" }, ` ${shown(each.source_path)} → ${shown(each.archived_path)}`) : "", each.detail ? element("p", { class: "detail" }, shown(each.detail)) : ""));
  return [element("h3", {}, `History (${facts.attempts.length})`), element("ol", { class: "tried" }, lines)];
}
