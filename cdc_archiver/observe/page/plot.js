// Plots of the last hour. All have the same x axis of minutes; pointer, tap and arrow keys select one minute in all of them.

import { count, drawn, element, files, latency, minute, size } from "./words.js";

const MINUTES = 60;
const HEIGHT = 170;
const LEFT = 58;
const RIGHT = 12;
const TOP = 10;
const BOTTOM = 24;

/** Round integers from 0 to at least the highest value. */
function ticks(highest, least) {
  const most = Math.max(highest, least);
  const power = 10 ** Math.floor(Math.log10(most / 3));
  const step = Math.max(1, [1, 2, 5, 10].map((each) => each * power).find((each) => each >= most / 3));
  return Array.from({ length: Math.ceil(most / step) + 1 }, (_, index) => index * step);
}

class Plot {
  constructor(board, title, legend, describe) {
    this.board = board;
    this.title = title;
    this.describe = describe;
    this.output = element("output", { class: "readout" });
    this.drawing = drawn("svg", {
      tabindex: "0",
      role: "slider",
      "aria-label": `${title}, by the minute; arrow keys select one`,
      "aria-valuemin": "0",
      "aria-valuemax": String(MINUTES - 1),
      pointermove: (event) => board.choose(this.at(event)),
      pointerdown: (event) => board.choose(this.at(event)),
      pointerleave: (event) => event.pointerType === "mouse" && board.choose(null),
      blur: () => board.choose(null),
      keydown: (event) => this.key(event),
    });
    const caption = element("p", { class: "legend" }, legend.map(([kind, text]) => element("span", { class: `key ${kind}` }, text)));
    this.figure = element("figure", {}, element("figcaption", {}, element("h3", {}, title), caption), this.output, this.drawing);
  }

  /** Magnification: text on a wall display is read from afar. */
  get scale() {
    return parseFloat(getComputedStyle(document.documentElement).fontSize) / 15;
  }

  get width() {
    return Math.max(240, this.drawing.clientWidth / this.scale);
  }

  get step() {
    return (this.width - LEFT - RIGHT) / MINUTES;
  }

  x(index) {
    return LEFT + index * this.step;
  }

  at(event) {
    const index = Math.floor(((event.clientX - this.drawing.getBoundingClientRect().left) / this.scale - LEFT) / this.step);
    return Math.min(MINUTES - 1, Math.max(0, index));
  }

  key(event) {
    const chosen = this.board.chosen ?? MINUTES - 1;
    const to = { ArrowLeft: chosen - 1, ArrowDown: chosen - 1, ArrowRight: chosen + 1, ArrowUp: chosen + 1, Home: 0, End: MINUTES - 1 }[event.key];
    if (event.key === "Escape") this.board.choose(null);
    else if (to === undefined) return;
    else this.board.choose(Math.min(MINUTES - 1, Math.max(0, to)));
    event.preventDefault();
  }

  draw() {
    const { minutes } = this.board;
    const { marks, labels, y } = this.axis(minutes);
    const width = this.width;
    const bottom = HEIGHT - BOTTOM;
    const parts = [];
    const first = minutes.findIndex((each) => each.there);
    if (first > 0) parts.push(drawn("rect", { class: "before", x: LEFT, y: TOP, width: this.x(first) - LEFT, height: bottom - TOP }));
    if (first > 11) parts.push(drawn("text", { class: "before-text", x: (LEFT + this.x(first)) / 2, y: TOP + (bottom - TOP) * 0.3 }, "before the service's start"));
    marks.forEach((mark, index) => {
      parts.push(drawn("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark) }));
      parts.push(drawn("text", { class: "y", x: LEFT - 6, y: y(mark) + 4 }, labels[index]));
    });
    minutes.forEach((each, index) => {
      if (each.at.getUTCMinutes() % 15) return;
      const middle = this.x(index) + this.step / 2;
      parts.push(drawn("line", { class: "tick", x1: middle, x2: middle, y1: bottom, y2: bottom + 4 }));
      if (middle > LEFT + 14 && middle < width - 22) parts.push(drawn("text", { class: "x", x: middle, y: HEIGHT - 6 }, minute(each.at)));
    });
    parts.push(...this.shapes(minutes, y));
    const chosen = this.board.chosen;
    if (chosen !== null) {
      const middle = this.x(chosen) + this.step / 2;
      parts.push(drawn("line", { class: "cross", x1: middle, x2: middle, y1: TOP, y2: bottom }));
    }
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.drawing.setAttribute("height", String(Math.round(HEIGHT * this.scale)));
    this.drawing.replaceChildren(...parts);
    this.describeMinute(minutes, chosen);
  }

  describeMinute(minutes, chosen) {
    const index = chosen ?? MINUTES - 1;
    const each = minutes[index];
    const when = `${minute(each.at)}${index === MINUTES - 1 ? " so far" : ""}`;
    const text = `${when}: ${each.there ? this.describe(each) : "before the service's start"}`;
    this.output.textContent = text;
    this.drawing.setAttribute("aria-valuenow", String(index));
    this.drawing.setAttribute("aria-valuetext", text);
  }

  linear(highest, least, label) {
    const marks = ticks(highest, least);
    const top = marks.at(-1);
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);
    return { marks, labels: marks.map(label), y };
  }

  bar(kind, index, from, to) {
    const gap = Math.min(2, this.step * 0.2);
    return drawn("rect", { class: `${kind}${index === MINUTES - 1 ? " now" : ""}`, x: this.x(index) + gap / 2, width: this.step - gap, y: to, height: Math.max(0, from - to) });
  }
}

class FilesPlot extends Plot {
  axis(minutes) {
    return this.linear(Math.max(...minutes.map((each) => each.files + each.failed)), 4, (mark) => count(mark));
  }

  shapes(minutes, y) {
    return minutes.flatMap((each, index) => [
      each.files ? this.bar("bar", index, y(0), y(each.files)) : null,
      each.failed ? this.bar("bar failed", index, y(each.files), y(each.files + each.failed)) : null,
    ]).filter(Boolean);
  }
}

class BytesPlot extends Plot {
  axis(minutes) {
    return this.linear(Math.max(...minutes.map((each) => each.size)), 1000, (mark) => size(mark).replace(".0 ", " "));
  }

  shapes(minutes, y) {
    return minutes.map((each, index) => (each.size ? this.bar("bar", index, y(0), y(each.size)) : null)).filter(Boolean);
  }
}

class LatencyPlot extends Plot {
  axis(minutes) {
    const seen = minutes.flatMap((each) => [each.p50, each.p99]).filter((each) => each !== null);
    const low = Math.floor(Math.log10(Math.min(0.1, ...seen)) + 1e-9);
    const high = Math.max(low + 2, Math.ceil(Math.log10(Math.max(1, ...seen)) - 1e-9));
    const marks = Array.from({ length: high - low + 1 }, (_, index) => 10 ** (low + index));
    const y = (value) => HEIGHT - BOTTOM - ((Math.log10(value) - low) / (high - low)) * (HEIGHT - BOTTOM - TOP);
    const label = (mark) => (mark < 1 ? `${Math.round(mark * 1000)} ms` : `${count(Math.round(mark))} s`);
    return { marks, labels: marks.map(label), y };
  }

  shapes(minutes, y) {
    return ["p99", "p50"].flatMap((name) => {
      const shapes = [];
      let line = [];
      const end = () => {
        if (line.length > 1) shapes.push(drawn("polyline", { class: `line ${name}`, points: line.map((point) => point.join(",")).join(" ") }));
        line = [];
      };
      minutes.forEach((each, index) => {
        if (each[name] === null) return end();
        const point = [this.x(index) + this.step / 2, y(each[name])];
        const mark = name === "p50" ? drawn("circle", { class: `dot ${name}`, cx: point[0], cy: point[1], r: 2.4 }) : drawn("rect", { class: `dot ${name}`, x: point[0] - 2.4, y: point[1] - 2.4, width: 4.8, height: 4.8 });
        shapes.push(mark);
        line.push(point);
      });
      end();
      return shapes;
    });
  }
}

/** All plots, and the minute that is selected in them. */
export class Board {
  constructor(home) {
    this.chosen = null;
    this.minutes = [];
    this.plots = [
      new FilesPlot(this, "Files per minute", [["bar", "archived"], ["bar failed", "unsuccessful attempts, of any scope"]], (each) => `${files(each.files)}${each.failed ? `, ${count(each.failed)} unsuccessful` : ""}`),
      new BytesPlot(this, "Bytes per minute", [["bar", "copied"]], (each) => size(each.size)),
      new LatencyPlot(this, "From event to archived", [["p50", "50 % of files"], ["p99", "99 %"]], (each) => (each.p50 === null ? "no events" : `${latency(each.p50)} (50 %), ${latency(each.p99)} (99 %)`)),
    ];
    home.replaceChildren(...this.plots.map((plot) => plot.figure));
    new ResizeObserver(() => this.draw()).observe(home);
  }

  /** Shows the minutes of /api/activity. */
  show(minutes) {
    if (!minutes.length) return;
    const known = new Map(minutes.map((each) => [Date.parse(each.at), each]));
    const last = Math.max(...known.keys());
    this.minutes = Array.from({ length: MINUTES }, (_, index) => {
      const at = last - (MINUTES - 1 - index) * 60000;
      const nothing = { files: 0, size: 0, failed: 0, p50: null, p99: null };
      return { ...nothing, ...known.get(at), at: new Date(at), there: known.has(at) };
    });
    this.draw();
  }

  choose(index) {
    if (index === this.chosen) return;
    this.chosen = index;
    this.draw();
  }

  draw() {
    if (this.minutes.length) for (const plot of this.plots) plot.draw();
  }
}
