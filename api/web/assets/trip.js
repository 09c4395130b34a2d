// One trip for a passenger: where the bus is, when it will be at each stop and how sure that is, and how old all of it is.

import { ageWords, classOf, clockOf, delayWords, icon } from "./buses.js";
import { Live } from "./live.js";
import { boundsOf, lineFeature, makeMap, stopFeature } from "./map.js";

const $ = (id) => document.getElementById(id);
const tripId = decodeURIComponent(location.pathname.split("/").pop());
const SILENT_MS = 25_000;

let trip = null;
let bus = null;
let forecast = new Map();

await load();

async function load() {
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
  document.querySelector("#stops .next")?.scrollIntoView({ block: "center" });
  const map = await makeMap("map", { bounds: boundsOf(trip.geometry.coordinates), fitBoundsOptions: { padding: 40 } });
  map.getSource("routes").setData(lineFeature(trip.geometry));
  map.setLayerZoomRange("stops", 8, 24);
  map.getSource("stops").setData({ type: "FeatureCollection", features: trip.stops.map(stopFeature) });
  window.timepoint = { map, get bus() { return bus; } }; // for tests and the curious
  const drawBus = () => {
    if (!bus) return;
    const group = classOf(bus, Date.now());
    const point = { type: "Feature", geometry: { type: "Point", coordinates: [bus.lon, bus.lat] }, properties: { class: group, label: bus.busId, faded: group === "nosignal" } };
    map.getSource("buses").setData(point);
  };
  drawBus();
  const live = new Live({
    onPush(kind, data) {
      if (kind === "snapshot") [bus] = data.length ? data : [bus];
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

async function again() {
  const answer = await fetch(`/v1/trips/${encodeURIComponent(tripId)}`);
  if (!answer.ok) return;
  trip = await answer.json();
  draw();
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
    row.className = passed ? "passed" : stop.seq === next ? "next" : "";
    if (stop.seq === next) row.setAttribute("aria-current", "step");
    const planned = clockOf(at === 0 ? stop.departsAt : stop.arrivesAt, trip.timezone);
    const estimated = !passed && foreseen?.p50 ? clockOf(foreseen.p50, trip.timezone) : null;
    const skipped = foreseen?.kind === "SKIPPED";
    row.append(span("name", stop.name), span("when", skipped ? "not served" : passed ? "passed" : estimated ?? planned));
    const said = passed || skipped ? "" : rangeWords(foreseen, planned, estimated);
    if (said) row.append(span("range", said));
    return row;
  });
  $("stops").replaceChildren(...rows);
}

function rangeWords(foreseen, planned, estimated) {
  if (!estimated) return "planned";
  const early = clockOf(foreseen.p10, trip.timezone);
  const late = clockOf(foreseen.p90, trip.timezone);
  const range = early === late ? "" : `between ${early} and ${late}, `;
  return `${range}planned ${planned}`;
}

function span(className, words) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = words;
  return element;
}
