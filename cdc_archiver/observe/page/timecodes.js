// The section about timecodes: how far each source has come, what is in the way, the newest timecodes.

import { ago, count, element, files, moment, shown, size } from "./words.js";

const TONES = { open: "idle", blocked: "bad", complete: "good", reopened: "warning" };
const BOUNDS = { row: "held up by its oldest undecided file", registrar: "as far as the registrar has come", hold: "held", sweep: "nothing is undecided before it" };

/** The parts of the section, for an answer of /api/timecodes. */
export function timecodesOf(known, now, kit) {
  const { badge, cell, table, whyButton, path } = kit;
  const notes = [known.off_because && `Not kept: ${known.off_because}`, known.not_completing_because].filter(Boolean);
  const parts = notes.map((text) => element("p", { class: "note" }, shown(text)));
  if (known.watermarks.length) {
    const rows = known.watermarks.map((mark) => element("tr", {},
      element("th", { scope: "row" }, shown(mark.source)),
      cell("Decided until", mark.finalized_until ? `${moment(new Date(mark.finalized_until))}, ${ago(new Date(mark.finalized_until), now)}` : "not known yet"),
      cell("Because", BOUNDS[mark.bound_by] ?? mark.bound_by, mark.bound_by === "row" && mark.oldest_id !== null ? [": ", whyButton(mark.oldest_id, "watermark"), " ", path(mark.oldest_path)] : "",
        mark.silent_registrars ? `; silent registrars: ${mark.silent_registrars}` : ""),
    ));
    parts.push(table(["Source", "Decided until", "Because"], rows, "sources watermarks"));
  }
  if (known.timecodes.length) {
    const rows = known.timecodes.map((each) => element("tr", {},
      element("th", { scope: "row" }, String(each.timecode), element("span", { class: "more" }, shown(each.instance_id))),
      cell("State", badge(TONES[each.state] ?? "unknown"), element("span", { class: "state-text" }, stateText(each))),
      cell("Files", count(each.files)),
      cell("Bytes", size(each.bytes)),
      cell("Late files", count(each.late)),
    ));
    parts.push(table(["Timecode", "State", "Files", "Bytes", "Late files"], rows, "sources timecodes"));
  }
  if (!parts.length) parts.push(element("p", { class: "quiet" }, "None is known yet."));
  return parts;
}

function stateText(each) {
  const reasons = Object.entries(each.reasons).map(([reason, number]) => `${count(number)} ${reason}`).join(", ");
  const marks = [each.held && `held: ${each.held_reason}`, each.handed_over && "handed over"].filter(Boolean);
  return shown([each.state + (reasons ? `: ${reasons}` : ""), each.undecided && !reasons ? `${files(each.undecided)} undecided` : "", ...marks].filter(Boolean).join("; "));
}
