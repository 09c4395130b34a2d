// The fleet map: every bus in the viewport, as the live socket tells it.

import { CLASSES, ageWords, classOf, clockOf, delayWords, icon } from "./buses.js";
import { Inbox } from "./incidents.js";
import { Live } from "./live.js";
import { boundsOf, lineFeature, makeMap, pages, stopFeature } from "./map.js";

const $ = (id) => document.getElementById(id);
const SPAN_DEG = 9.99;
const WORDS_MS = 500; // counts and the open card: read, not watched

const buses = new Map();
let chosen = null;
let dirty = false; // the words, not the marks: those are painted in the next frame

const { map, marks } = await makeMap("map");
window.timepoint = { buses, map, marks }; // for tests and the curious

const live = new Live({ onPush: hear, onState: showState });
const inbox = new Inbox({ live, choose: centre });
map.on("moveend", look);
drawNetwork().catch((fault) => console.warn("no network:", fault.message)).finally(look);
makeChips();
setInterval(draw, WORDS_MS);
setInterval(() => {
  for (const bus of buses.values()) mark(bus);
  dirty = true;
}, 5_000); // silence changes classes too

function look() {
  const box = map.getBounds();
  const centre = map.getCenter();
  // the engine takes boxes up to SPAN_DEG wide and high: further out, the middle of the map is live
  const side = (least, most, middle, edge) => [Math.max(-edge, least, middle - SPAN_DEG / 2), Math.min(edge, most, middle + SPAN_DEG / 2)];
  const [west, east] = side(box.getWest(), box.getEast(), centre.lng, 180);
  const [south, north] = side(box.getSouth(), box.getNorth(), centre.lat, 90);
  live.look([west, south, east, north], map.getZoom());
}

function hear(kind, data, channels) {
  if (inbox.hear(kind, data, channels)) return;
  if (kind === "pos") keep(data);
  else if (kind === "gone") {
    buses.delete(data.busId);
    marks.drop(data.busId);
  } else if (kind === "snapshot") {
    buses.clear();
    marks.clear();
    data.forEach(keep);
  } else return;
  dirty = true;
}

function keep(bus) {
  buses.set(bus.busId, bus);
  mark(bus);
}

function mark(bus) {
  const minutes = bus.delayS === null ? "" : ` ${bus.delayS >= 0 ? "+" : "−"}${Math.abs(Math.round(bus.delayS / 60))}`;
  marks.put(bus.busId, bus, classOf(bus, Date.now()), bus.busId + minutes);
}

function showState(state) {
  $("state").dataset.state = state;
  $("state").textContent = state;
}

function draw() {
  if (!dirty) return;
  dirty = false;
  const now = Date.now();
  const counts = Object.fromEntries(CLASSES.map(({ id }) => [id, 0]));
  for (const { group } of marks.all.values()) counts[group] += 1;
  say($("count"), `${buses.size} buses`);
  $("empty").classList.toggle("hidden", buses.size > 0);
  for (const { id } of CLASSES) say($(`count-${id}`), String(counts[id]));
  if (chosen) drawCard(now);
}

function say(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

function makeChips() {
  for (const { id, label } of CLASSES) {
    const chip = document.createElement("button");
    chip.className = "chip";
    chip.setAttribute("aria-pressed", "true");
    const count = document.createElement("span");
    count.id = `count-${id}`;
    count.className = "mono";
    chip.append(icon(id), label, count);
    chip.onclick = () => {
      const isShown = chip.getAttribute("aria-pressed") === "false";
      marks.show(id, isShown);
      chip.setAttribute("aria-pressed", String(isShown));
    };
    $("chips").append(chip);
  }
}

async function drawNetwork() {
  const routes = await pages("/v1/routes");
  const details = await Promise.all(routes.map(async (route) => (await fetch(`/v1/routes/${encodeURIComponent(route.routeId)}`)).json()));
  const lines = details.flatMap((route) => route.patterns.map((pattern) => lineFeature(pattern.geometry, route.color)));
  map.getSource("routes").setData({ type: "FeatureCollection", features: lines });
  const busiest = details.filter((route) => route.patterns.some((pattern) => pattern.lengthM < 60_000));
  const points = (busiest.length ? busiest : details).flatMap((route) => route.patterns.flatMap((pattern) => pattern.geometry.coordinates));
  if (points.length) map.fitBounds(boundsOf(points), { padding: 60, duration: 0 });
  const stops = await pages("/v1/stops");
  map.getSource("stops").setData({ type: "FeatureCollection", features: stops.map(stopFeature) });
}

map.on("click", (event) => {
  const busId = marks.at(event.point);
  if (busId) choose(busId);
});
map.on("mousemove", (event) => { map.getCanvas().style.cursor = marks.at(event.point) ? "pointer" : ""; });
addEventListener("keydown", (event) => { if (event.key === "Escape") choose(null); });

/** The map goes to where an incident's bus is now, or was when it was said, and the bus's card opens. */
function centre({ busId, tripId, lat, lon }) {
  const bus = buses.get(busId) ?? [...buses.values()].find((one) => tripId && one.tripId === tripId);
  const place = bus ?? (lat === undefined ? null : { lon, lat });
  if (place) map.easeTo({ center: [place.lon, place.lat], zoom: Math.max(map.getZoom(), 13) });
  if (bus ?? busId) choose(bus?.busId ?? busId);
}

async function choose(busId) {
  chosen = busId ? { busId, trip: null } : null;
  $("card").classList.toggle("hidden", !chosen);
  if (!chosen) return;
  drawCard(Date.now());
  const bus = buses.get(busId);
  if (!bus?.tripId) return;
  const answer = await fetch(`/v1/trips/${encodeURIComponent(bus.tripId)}`);
  const trip = answer.ok ? await answer.json() : null;
  if (trip && chosen?.busId === busId) { // else somebody chose another meanwhile, or none
    chosen.trip = trip;
    drawCard(Date.now());
  }
}

function drawCard(now) {
  const bus = buses.get(chosen.busId);
  const card = $("card");
  if (!bus) {
    card.replaceChildren(closeButton(), heading(chosen.busId), text("p", "It has left this part of the map.", "soft"));
    return;
  }
  const group = classOf(bus, now);
  const mark = text("p", "", "mark");
  mark.append(icon(group), CLASSES.find(({ id }) => id === group).label + (bus.tripId ? `, ${delayWords(bus.delayS)}` : ""));
  const facts = document.createElement("dl");
  facts.className = "facts mono";
  const trip = chosen.trip?.id === bus.tripId ? chosen.trip : null;
  const nameOf = (stopId) => trip?.stops.find((stop) => stop.stopId === stopId)?.name ?? stopId.split(":").slice(1).join(":");
  const rows = [
    ["Route", trip ? `${trip.routeName}${trip.headsign ? ` to ${trip.headsign}` : ""}` : bus.routeId?.split(":").slice(1).join(":")],
    ["Next stop", bus.nextStop && `${nameOf(bus.nextStop.stopId)}, ${bus.nextStop.p50 ? clockOf(bus.nextStop.p50, trip?.timezone) : "no estimate"}`],
    ["Speed", bus.speedMps === null ? null : `${Math.round(bus.speedMps * 3.6)} km/h`],
    ["Off the line", bus.offsetM === null ? null : `${Math.round(bus.offsetM)} m`],
    ["On board", bus.occupancy],
    ["Heard", ageWords(bus.at, now)],
  ];
  for (const [name, value] of rows) {
    if (value === null || value === undefined) continue;
    facts.append(text("dt", name), text("dd", value));
  }
  card.replaceChildren(closeButton(), heading(bus.busId), mark, facts);
  if (bus.tripId) {
    const link = text("a", "Follow this trip");
    link.href = `/trip/${encodeURIComponent(bus.tripId)}`;
    const line = document.createElement("p");
    line.append(link);
    card.append(line);
  }
}

function heading(words) { return text("h2", words); }

function closeButton() {
  const button = text("button", "✕", "close");
  button.setAttribute("aria-label", "Close");
  button.onclick = () => choose(null);
  return button;
}

function text(tag, words, className = "") {
  const element = document.createElement(tag);
  element.textContent = words;
  element.className = className;
  return element;
}
