// Formats values as the commands print them, and makes elements, whose text is never markup.

const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** A text from a row or a file's name, with unprintable characters escaped. */
export function shown(text) {
  return String(text).replace(UNPRINTABLE, (character) => {
    const number = character.codePointAt(0);
    return number < 0x100 ? `\\x${number.toString(16).padStart(2, "0")}` : `\\u{${number.toString(16)}}`;
  });
}

/** A size for a person, in powers of 1000. */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  if (bytes < 1000) return `${Math.round(bytes)} B`;
  for (const unit of ["kB", "MB", "GB"]) {
    bytes /= 1000;
    if (bytes < 999.95) return `${bytes.toFixed(1)} ${unit}`;
  }
  return `${(bytes / 1000).toFixed(1)} TB`;
}

export function count(number) {
  return number === null || number === undefined ? "–" : number.toLocaleString("en");
}

export function files(number) {
  return number === 1 ? "1 file" : `${count(number)} files`;
}

/** A duration: `12 s`, `3 min`, `5 h`, `2 days`. */
export function span(seconds) {
  for (const [limit, unit, name] of [[120, 1, "s"], [7200, 60, "min"], [172800, 3600, "h"]]) {
    if (seconds < limit) return `${Math.round(seconds / unit)} ${name}`;
  }
  return `${Math.round(seconds / 86400)} days`;
}

/** A latency, below a second in milliseconds. */
export function latency(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.9995) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  return seconds < 10 ? `${seconds.toFixed(1)} s` : span(seconds);
}

export function ago(then, now) {
  return `${span(Math.max(0, (now - then) / 1000))} ago`;
}

/** Date and time, UTC. */
export function moment(date) {
  return `${date.toISOString().slice(0, 19).replace("T", " ")}Z`;
}

/** The time of day, UTC, to the second. */
export function time(date) {
  return date.toISOString().slice(11, 19);
}

/** Hour and minute, UTC. */
export function minute(date) {
  return date.toISOString().slice(11, 16);
}

/** An element. Strings among the children become text, never markup. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An element of a drawing. */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}
