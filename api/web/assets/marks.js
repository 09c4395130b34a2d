// The buses on a map: a canvas of its own above it, so that a bus that moves never has the map drawn again.
//
// A map frame costs 130 ms where it is drawn by software, 2,000 marks here 3 to 6 ms. What moves is painted once a frame; while the map itself
// moves, in the map's own frames, so both stay together.

import { CLASSES, pathOf } from "./buses.js";

const ICON_PX = 28, EDGE_PX = 2; // at size 1: a path of 24 and its outline
const SIZES = [[8, 0.5], [13, 0.8], [16, 1]]; // zoom -> size, linear between
const LABELS_FROM = 12.5; // zoom
const LABEL_PX = 12, LABEL_BELOW_PX = 14, CELL_PX = 6;
const FADED = 0.55;
const FINGER_PX = 6; // around a mark, what still hits it
const WORDS_MOST = 5_000; // widths of labels that are remembered

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function sizeAt(zoom) {
  const [first] = SIZES, last = SIZES.at(-1);
  if (zoom <= first[0]) return first[1];
  if (zoom >= last[0]) return last[1];
  const next = SIZES.findIndex(([at]) => at > zoom);
  const [[fromZoom, from], [toZoom, to]] = [SIZES[next - 1], SIZES[next]];
  return from + ((to - from) * (zoom - fromZoom)) / (toZoom - fromZoom);
}

export class Marks {
  /** Above `map`, below its controls. `onPaint` is called after each painting. */
  constructor(map) {
    this.map = map;
    this.onPaint = () => {};
    this.all = new Map(); // id -> {id, group, label, lon, lat, x, y in Mercator's unit square, left, top in px of the last painting}
    this.hidden = new Set(); // classes
    this.icons = new Map();
    this.iconsFor = "";
    this.widths = new Map();
    this.frame = 0;
    this.canvas = document.createElement("canvas");
    this.canvas.className = "marks";
    this.canvas.setAttribute("aria-hidden", "true");
    this.pen = this.canvas.getContext("2d");
    map.getCanvasContainer().append(this.canvas);
    map.on("render", () => this.paintIfMoved());
    map.on("resize", () => this.measure());
    this.measure();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.iconsFor = ""; this.changed(); });
  }

  put(id, { lon, lat }, group, label) {
    const sine = Math.sin((lat * Math.PI) / 180);
    const mark = this.all.get(id) ?? { id, left: NaN, top: NaN };
    Object.assign(mark, { group, label, lon, lat, x: lon / 360 + 0.5, y: 0.5 - Math.log((1 + sine) / (1 - sine)) / (4 * Math.PI) });
    this.all.set(id, mark);
    this.changed();
  }

  drop(id) {
    if (this.all.delete(id)) this.changed();
  }

  clear() {
    this.all.clear();
    this.changed();
  }

  show(group, isShown) {
    if (isShown) this.hidden.delete(group);
    else this.hidden.add(group);
    this.changed();
  }

  /** The id of the mark at a point of the map, the nearest one; null where there is none. */
  at({ x, y }) {
    const reach = (ICON_PX / 2) * sizeAt(this.map.getZoom()) + FINGER_PX;
    let best = null, least = reach * reach;
    for (const mark of this.all.values()) {
      const far = (mark.left - x) ** 2 + (mark.top - y) ** 2;
      if (far <= least && !this.hidden.has(mark.group)) [best, least] = [mark.id, far];
    }
    return best;
  }

  measure() {
    ({ clientWidth: this.width, clientHeight: this.height } = this.map.getCanvas());
    Object.assign(this.canvas.style, { width: `${this.width}px`, height: `${this.height}px` });
    this.changed();
  }

  /** Painted in the next frame, once, whatever changes until then. */
  changed() {
    this.frame ||= requestAnimationFrame(() => this.paint());
  }

  paintIfMoved() {
    const { map } = this, { lng, lat } = map.getCenter();
    const view = [lng, lat, map.getZoom(), map.getBearing(), map.getPitch()].join();
    if (view !== this.view) this.paint();
    this.view = view;
  }

  paint() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const { map, pen, canvas, width, height } = this;
    const ratio = devicePixelRatio, size = sizeAt(map.getZoom());
    const across = Math.round(width * ratio), down = Math.round(height * ratio);
    if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
    else {
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.clearRect(0, 0, across, down);
    }
    this.paintIcons(Math.round(ICON_PX * size * ratio));
    this.place();
    const edge = ICON_PX, seen = [];
    for (const mark of this.all.values()) {
      const { left, top } = mark;
      if (left > -edge && top > -edge && left < width + edge && top < height + edge && !this.hidden.has(mark.group)) seen.push(mark);
    }
    pen.setTransform(1, 0, 0, 1, 0, 0);
    for (const mark of seen.toSorted((one, other) => one.top - other.top)) { // what is nearer lies above
      const image = this.icons.get(mark.group);
      pen.drawImage(image, Math.round(mark.left * ratio - image.width / 2), Math.round(mark.top * ratio - image.height / 2));
    }
    if (map.getZoom() >= LABELS_FROM) this.write(seen, width, height, ratio);
    this.onPaint();
  }

  /** Where each mark is in the picture. Without pitch that is a turn and a stretch of Mercator's square around the middle. */
  place() {
    const { map } = this;
    if (map.getPitch() > 0) {
      for (const mark of this.all.values()) ({ x: mark.left, y: mark.top } = map.project([mark.lon, mark.lat]));
      return;
    }
    const centre = map.getCenter(), { x, y } = map.project(centre);
    const sine = Math.sin((centre.lat * Math.PI) / 180);
    const middleX = centre.lng / 360 + 0.5, middleY = 0.5 - Math.log((1 + sine) / (1 - sine)) / (4 * Math.PI);
    const world = 512 * 2 ** map.getZoom(), turn = (-map.getBearing() * Math.PI) / 180;
    const along = world * Math.cos(turn), across = world * Math.sin(turn);
    for (const mark of this.all.values()) {
      let east = mark.x - middleX;
      east -= Math.round(east); // the nearest of the worlds that lie side by side
      const south = mark.y - middleY;
      mark.left = x + east * along - south * across;
      mark.top = y + east * across + south * along;
    }
  }

  paintIcons(side) {
    const wanted = String(side);
    if (this.iconsFor === wanted) return;
    this.iconsFor = wanted;
    this.ink = css("ink");
    this.halo = css("land");
    for (const { id } of CLASSES) {
      const image = document.createElement("canvas");
      image.width = image.height = side;
      const pen = image.getContext("2d");
      pen.scale(side / ICON_PX, side / ICON_PX);
      pen.translate(EDGE_PX, EDGE_PX);
      const path = new Path2D(pathOf(id));
      pen.lineWidth = 3;
      pen.lineJoin = "round";
      pen.strokeStyle = css("panel");
      pen.stroke(path);
      pen.fillStyle = css(id);
      pen.fill(path, "evenodd");
      if (id === "nosignal") { // all of it fainter, outline and all
        Object.assign(pen, { globalCompositeOperation: "destination-in", fillStyle: `rgb(0 0 0 / ${FADED})` });
        pen.fillRect(-EDGE_PX, -EDGE_PX, ICON_PX, ICON_PX);
      }
      this.icons.set(id, image);
    }
  }

  /** Labels below the marks, as many as find room; who was there first keeps it. */
  write(seen, width, height, ratio) {
    const { pen } = this;
    const columns = Math.ceil(width / CELL_PX) + 1, rows = Math.ceil(height / CELL_PX) + 1;
    const taken = new Uint8Array(columns * rows);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    Object.assign(pen, { font: `${LABEL_PX}px sans-serif`, textAlign: "center", textBaseline: "top", lineJoin: "round" });
    Object.assign(pen, { lineWidth: 3.2, strokeStyle: this.halo, fillStyle: this.ink });
    for (const { label, left, top } of seen) {
      const half = this.widthOf(label) / 2, above = top + LABEL_BELOW_PX;
      const from = Math.max(0, Math.floor((left - half) / CELL_PX)), to = Math.min(columns - 1, Math.floor((left + half) / CELL_PX));
      const first = Math.max(0, Math.floor(above / CELL_PX)), last = Math.min(rows - 1, Math.floor((above + LABEL_PX) / CELL_PX));
      if (!takes(taken, columns, from, to, first, last)) continue;
      pen.strokeText(label, left, above);
      pen.fillText(label, left, above);
    }
  }

  widthOf(label) {
    let width = this.widths.get(label);
    if (width === undefined) {
      if (this.widths.size >= WORDS_MOST) this.widths.clear();
      width = this.pen.measureText(label).width;
      this.widths.set(label, width);
    }
    return width;
  }
}

function takes(taken, columns, from, to, first, last) {
  for (let row = first; row <= last; row += 1) {
    for (let column = from; column <= to; column += 1) if (taken[row * columns + column]) return false;
  }
  for (let row = first; row <= last; row += 1) taken.fill(1, row * columns + from, row * columns + to + 1);
  return true;
}
