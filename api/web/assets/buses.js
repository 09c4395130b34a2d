// What a position means to a person: its class by delay and signal, with a shape, a colour and words.

export const CLASSES = [
  { id: "ontime", label: "On time", shape: "circle" },
  { id: "late", label: "Late", shape: "triangle" },
  { id: "verylate", label: "Very late", shape: "square" },
  { id: "early", label: "Early", shape: "drop" },
  { id: "offroute", label: "Off route", shape: "diamond" },
  { id: "notrip", label: "Not in service", shape: "ring" },
  { id: "nosignal", label: "No signal", shape: "cross" },
];

const SILENT_MS = 90_000;

/** The class of a position at a time: late from 5 min, very late from 10, early from 1 (the operator's usual window). */
export function classOf(bus, now) {
  if (bus.state === "STALE" || bus.state === "OFFLINE" || now - Date.parse(bus.at) > SILENT_MS) return "nosignal";
  if (bus.state === "OFF_ROUTE") return "offroute";
  if (bus.tripId === null || bus.state === "DEADHEAD" || bus.state === "DONE") return "notrip";
  if (bus.delayS === null || bus.delayS === undefined) return "ontime";
  if (bus.delayS > 600) return "verylate";
  if (bus.delayS > 300) return "late";
  return bus.delayS < -60 ? "early" : "ontime";
}

const PATHS = {
  circle: "M12 3a9 9 0 1 0 .01 0z",
  ring: "M12 3a9 9 0 1 0 .01 0zM12 8a4 4 0 1 1-.01 0z",
  triangle: "M12 3 22 20H2z",
  square: "M4 4h16v16H4z",
  drop: "M12 21 2 4h20z",
  diamond: "M12 1 23 12 12 23 1 12z",
  cross: "M5 2 12 9l7-7 3 3-7 7 7 7-3 3-7-7-7 7-3-3 7-7-7-7z",
};

export function pathOf(id) {
  return PATHS[CLASSES.find((one) => one.id === id).shape];
}

export function icon(id) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", pathOf(id));
  path.setAttribute("fill-rule", "evenodd");
  path.setAttribute("fill", `var(--${id})`);
  svg.append(path);
  return svg;
}

export function delayWords(delayS) {
  if (delayS === null || delayS === undefined) return "delay unknown";
  const minutes = Math.round(delayS / 60);
  if (minutes === 0) return "on time";
  return minutes > 0 ? `${minutes} min late` : `${-minutes} min early`;
}

export function ageWords(at, now) {
  const seconds = Math.max(0, Math.round((now - Date.parse(at)) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

export function clockOf(at, timeZone) {
  return new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", timeZone });
}

/** From one time to another, as people write it: what both have in common (the date, AM or PM) is said once. */
export function spanOf(from, to, timeZone) {
  return new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", timeZone }).formatRange(new Date(from), new Date(to));
}
