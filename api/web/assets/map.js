// The map under the buses: land from Natural Earth, the network from our own API, no tile server, no internet.

import * as maplibregl from "/vendor/maplibre-gl.mjs";
import { feature } from "/vendor/topojson/index.js";
import { Marks } from "./marks.js";

maplibregl.setWorkerUrl("/vendor/maplibre-gl-worker.mjs");

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function style(land) {
  const empty = { type: "FeatureCollection", features: [] };
  return {
    version: 8,
    sources: {
      land: { type: "geojson", data: land ?? empty, attribution: "Natural Earth" },
      routes: { type: "geojson", data: empty },
      stops: { type: "geojson", data: empty },
    },
    layers: [
      { id: "ground", type: "background", paint: { "background-color": ["interpolate", ["linear"], ["zoom"], 8, css("sea"), 10, css("land")] } },
      { id: "land", type: "fill", source: "land", paint: { "fill-color": css("land") }, maxzoom: 10 },
      { id: "borders", type: "line", source: "land", paint: { "line-color": css("line"), "line-width": 1 }, maxzoom: 10 },
      { id: "routes-case", type: "line", source: "routes", layout: { "line-cap": "round", "line-join": "round" }, paint: { "line-color": css("panel"), "line-width": 6 } },
      {
        id: "routes", type: "line", source: "routes", layout: { "line-cap": "round", "line-join": "round" },
        paint: { "line-color": ["get", "color"], "line-width": ["interpolate", ["linear"], ["zoom"], 8, 1.5, 14, 4], "line-opacity": 0.75 },
      },
      {
        id: "stops", type: "circle", source: "stops", minzoom: 12,
        paint: { "circle-radius": ["interpolate", ["linear"], ["zoom"], 12, 2, 16, 5], "circle-color": css("panel"), "circle-stroke-color": css("soft"), "circle-stroke-width": 1.5 },
      },
      {
        id: "stop-names", type: "symbol", source: "stops", minzoom: 14,
        layout: { "text-field": ["get", "name"], "text-size": 12, "text-offset": [0, -0.9], "text-anchor": "bottom", "text-optional": true }, // what a bus is called stands below it
        paint: { "text-color": css("soft"), "text-halo-color": css("land"), "text-halo-width": 1.5 },
      },
    ],
  };
}

/** A map in `container` with the sources routes and stops, and the marks above it; resolves once it can be drawn on. */
export async function makeMap(container, options = {}) {
  const map = new maplibregl.Map({ container, style: style(null), center: [3.06, 36.74], zoom: 10, attributionControl: { compact: true }, ...options });
  map.addControl(new maplibregl.NavigationControl({ showCompass: false }), "top-right");
  await new Promise((done) => map.once("load", done));
  fetch("/vendor/countries-50m.json")
    .then((answer) => answer.json())
    .then((world) => map.getSource("land")?.setData(feature(world, world.objects.countries)))
    .catch(() => console.warn("no base map"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => recolour(map));
  return { map, marks: new Marks(map) };
}

function recolour(map) {
  const kept = Object.fromEntries(["land", "routes", "stops"].map((id) => [id, map.getSource(id).serialize().data]));
  const next = style(kept.land);
  for (const id of ["routes", "stops"]) next.sources[id].data = kept[id];
  map.setStyle(next, { diff: true });
}

/** Every page of a list of the API. */
export async function pages(path, most = 40) {
  const items = [];
  let cursor = null;
  for (let page = 0; page < most; page += 1) {
    const url = new URL(path, location.href);
    url.searchParams.set("limit", "100");
    if (cursor) url.searchParams.set("cursor", cursor);
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    const body = await answer.json();
    items.push(...body.items);
    cursor = body.nextCursor;
    if (!cursor) break;
  }
  return items;
}

export function lineFeature(geometry, color) {
  return { type: "Feature", geometry, properties: { color: color ? `#${color}` : css("accent") } };
}

export function stopFeature(stop) {
  return { type: "Feature", geometry: { type: "Point", coordinates: [stop.lon, stop.lat] }, properties: { name: stop.name } };
}

/** The box of GeoJSON coordinates, as MapLibre wants it. */
export function boundsOf(coordinates) {
  const lons = coordinates.map((one) => one[0]);
  const lats = coordinates.map((one) => one[1]);
  return [[Math.min(...lons), Math.min(...lats)], [Math.max(...lons), Math.max(...lats)]];
}
