// One trip for a passenger: where the bus is, when it will be at each stop and how sure that is, and how old all of it is.

import { ageWords, classOf, clockOf, delayWords, icon, spanOf } from "./buses.js";
import { Live } from "./live.js";
import { boundsOf, lineFeature, makeMap, stopFeature } from "./map.js";

const $ = (id) => document.getElementById(id);
let tripId = decodeURIComponent(location.pathname.split("/").pop()); // of /share/...: the token of a link
const SILENT_MS = 25_000;

let trip = null;
let bus = null;
let forecast = new Map();
const told = new Map(); // what passengers should know: incident or alert id -> {class, words, url}

await load();

async function load() {
  if (location.pathname.startsWith("/share/") && !(await openLink())) return;
  const answer = await fetch(`/v1/trips/${encodeURIComponent(tripId)}`);
  if (!answer.ok) {
    $("title").textContent = "No such trip";
    $("subtitle").textContent = (await answer.json()).detail;
    return;
  }
  trip = await answer.json();
  document.title = `${trip.routeName} to ${trip.headsign ?? ""} · Timepoint`;
  $("title").textContent = `${trip.routeName} ${trip.headsign ? `to ${trip.headsign}` : ""}`;
  $("subtitle").textContent = `${trip.stops[0].name}, ${clockOf(trip.stops[0].departsAt, trip.timezone)} · times of ${trip.timezone}`;
  const now = await fetch(`/v1/trips/${encodeURIComponent(tripId)}/live`);
  if (now.ok) {
    bus = await now.json();
    keep(bus.stops);
  }
  draw();
  $("share").classList.remove("hidden");
  $("share").addEventListener("click", share);
  document.querySelector("#stops .next")?.scrollIntoView({ block: "center" });
  const { map, marks } = await makeMap("map", { bounds: boundsOf(trip.geometry.coordinates), fitBoundsOptions: { padding: 40 } });
  map.getSource("routes").setData(lineFeature(trip.geometry));
  map.setLayerZoomRange("stops", 8, 24);
  map.getSource("stops").setData({ type: "FeatureCollection", features: trip.stops.map(stopFeature) });
  window.timepoint = { map, marks, get bus() { return bus; } }; // for tests and the curious
  const drawBus = () => {
    if (bus) marks.put("bus", bus, classOf(bus, Date.now()), bus.busId);
  };
  drawBus();
  const live = new Live({
    onPush(kind, data) {
      if (kind === "snapshot") {
        [bus] = data.length ? data : [bus];
        told.clear(); // what goes on follows in the same frame
      }
      else if (kind === "incident") hear(data.incidentId, data.closedAt !== null && data.code !== "STOP_MISSED", incidentWords(data));
      else if (kind === "notice" && data.alert) hear(data.alert.alertId, data.what === "ALERT_OVER", alertWords(data.alert));
      else if (kind === "pos") bus = data;
      else if (kind === "eta") keep(data.stops);
      else if (kind === "gone") {
        bus = null;
        again(); // it may have ended
      }
      else return;
      drawBus();
      draw();
    },
    onState(state) {
      $("state").dataset.state = state;
      $("state").textContent = state;
    },
  });
  live.subscribe(`trip:${tripId}`);
  setInterval(draw, 1_000);
}

/** The trip that a shared link leads to; where it leads nowhere (any more), that is what the page says. */
async function openLink() {
  const answer = await fetch(`/v1/share/${encodeURIComponent(tripId)}`);
  const said = await answer.json();
  if (answer.ok) tripId = said.tripId;
  else {
    $("title").textContent = answer.status === 410 ? "This link has ended" : "This link leads nowhere";
    $("subtitle").textContent = said.detail;
  }
  return answer.ok;
}

/** Makes a link to this trip and hands it over: by the phone's own sheet, else by the clipboard, else as text. */
async function share() {
  const answer = await fetch(`/v1/trips/${encodeURIComponent(tripId)}/share`, { method: "POST" });
  const said = await answer.json();
  if (!answer.ok) return say(said.detail);
  try {
    if (navigator.share) await navigator.share({ title: document.title, url: said.url });
    else await navigator.clipboard.writeText(said.url);
    say(`Link copied. It ends at ${clockOf(said.expiresAt, trip.timezone)}.`);
  } catch {
    say(said.url);
  }
}

function say(words) {
  $("shared").textContent = words;
}

async function again() {
  const answer = await fetch(`/v1/trips/${encodeURIComponent(tripId)}`);
  if (!answer.ok) return;
  trip = await answer.json();
  draw();
}

function hear(id, over, words) {
  told.delete(id);
  if (!over) told.set(id, words);
  drawNotices();
}

const LABELS = { DETOUR: "Detour", DELAYED: "Held up", STOP_MISSED: "Stop missed" };

function incidentWords({ code, text, params }) {
  const since = code === "STOP_MISSED" || !params.since ? "" : ` Since ${clockOf(params.since, trip.timezone)}.`;
  return { className: code === "DETOUR" ? "detour" : "warning", label: LABELS[code] ?? code, words: text + since, url: null };
}

/** An operator's alert in the reader's language, else in English, else in whatever it was written in. */
function alertWords({ header, description, url, level }) {
  const pick = (texts) => {
    const wanted = [navigator.language, navigator.language.split("-")[0], "en"].find((language) => texts[language]);
    return texts[wanted] ?? Object.values(texts)[0] ?? "";
  };
  return { className: level === "SEVERE" ? "severe" : "warning", label: pick(header), words: pick(description), url };
}

function drawNotices() {
  $("notices").replaceChildren(...[...told.values()].reverse().map(({ className, label, words, url }) => {
    const row = document.createElement("li");
    row.className = `notice ${className}`;
    row.append(span("label", label), span("words", words));
    if (url) {
      const link = document.createElement("a");
      link.href = url;
      link.rel = "noopener";
      link.textContent = "Read more";
      row.append(link);
    }
    return row;
  }));
}

function keep(stops) {
  forecast = new Map(stops.map((stop) => [stop.seq, stop]));
}

function draw() {
  const now = Date.now();
  const mark = $("now");
  if (bus) {
    mark.replaceChildren(icon(classOf(bus, now)), `Bus ${bus.busId}, ${delayWords(bus.delayS)}`);
    $("age").textContent = `Position updated ${ageWords(bus.at, now)}`;
  } else {
    mark.textContent = trip.status === "COMPLETED" ? "This trip has ended" : "No bus is on this trip yet; these are the planned times";
    $("age").textContent = "";
  }
  const silent = bus !== null && now - Date.parse(bus.at) > SILENT_MS;
  $("notice").classList.toggle("hidden", !silent);
  if (silent) $("notice").textContent = `No signal for ${ageWords(bus.at, now).replace(" ago", "")}. The bus may be further along than shown.`;
  const next = bus?.nextStop?.seq;
  const rows = trip.stops.map((stop, at) => {
    const foreseen = forecast.get(stop.seq);
    const passed = bus !== null && (next === undefined || next === null ? false : stop.seq < next);
    const row = document.createElement("li");
    row.className = foreseen?.kind === "SKIPPED" ? "skipped" : passed ? "passed" : stop.seq === next ? "next" : "";
    if (stop.seq === next) row.setAttribute("aria-current", "step");
    const planned = clockOf(at === 0 ? stop.departsAt : stop.arrivesAt, trip.timezone);
    const estimated = !passed && foreseen?.p50 ? clockOf(foreseen.p50, trip.timezone) : null;
    const skipped = foreseen?.kind === "SKIPPED";
    const name = skipped ? document.createElement("s") : span("name", stop.name);
    if (skipped) Object.assign(name, { className: "name", textContent: stop.name });
    row.append(name, span("when", skipped ? "not served" : passed ? "passed" : estimated ?? planned));
    const said = passed || skipped ? "" : rangeWords(foreseen, planned, estimated);
    if (said) row.append(span("range", said));
    return row;
  });
  $("stops").replaceChildren(...rows);
}

function rangeWords(foreseen, planned, estimated) {
  if (!estimated) return "planned";
  const range = foreseen.p10 && foreseen.p90 ? spanOf(foreseen.p10, foreseen.p90, trip.timezone) : estimated;
  return `${range === estimated ? "" : `${range}, `}planned ${planned}`;
}

function span(className, words) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = words;
  return element;
}
