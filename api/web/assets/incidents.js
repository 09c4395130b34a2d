// The incidents beside the fleet map: those that go on, newest first, then those that ended a while ago. Everybody sees what concerns passengers; who signs in sees all of their operator's, live.

const $ = (id) => document.getElementById(id);
const KEPT_MS = 10 * 60_000; // what is over stays so long, struck out
const POLL_MS = 5_000;
const SHOWN_MAX = 60;

const KINDS = {
  OFF_ROUTE: "Off route", WRONG_WAY: "Wrong way", MISSED_STOP: "Missed a stop", FENCE_ENTERED: "Entered a fence", FENCE_EXITED: "Left a fence",
  FENCE_PASSED: "Crossed a fence", SPEEDING: "Speeding", IDLING: "Idling", BUNCHING: "Bunching", SILENT: "No signal", DELAYED: "Held up", SOS: "SOS",
  DETOUR: "Off route",
};
const SEVERITIES = { MINOR: "Minor", MAJOR: "Major", CRITICAL: "Critical", INFO: "Minor", WARNING: "Major", SEVERE: "Critical" };
const HANDLED = { ACKNOWLEDGED: "acknowledged", ASSIGNED: "assigned", CLOSED: "closed" };

export class Inbox {
  /** `choose(incident)` is called with what was clicked: {busId, lat, lon} or {tripId}. */
  constructor({ live, choose }) {
    this.live = live;
    this.choose = choose;
    this.known = new Map(); // incident id -> as last said
    this.channel = null;
    this.token = sessionStorage.getItem("token");
    $("inbox-toggle").onclick = () => this.open($("inbox").classList.contains("hidden"));
    $("inbox-close").onclick = () => this.open(false);
    $("sign-in").onsubmit = (event) => {
      event.preventDefault();
      this.signIn($("token").value.trim());
    };
    this.open(matchMedia("(min-width: 900px)").matches);
    if (this.token) this.signIn(this.token);
    else this.poll();
    setInterval(() => (this.channel ? this.draw() : this.poll()), POLL_MS);
  }

  open(open) {
    $("inbox").classList.toggle("hidden", !open);
    $("inbox-toggle").setAttribute("aria-expanded", String(open));
  }

  /** What concerns passengers, of every operator: no token needed. */
  async poll() {
    const answer = await fetch("/v1/alerts?limit=100").catch(() => null);
    if (!answer?.ok || this.channel) return;
    const { items } = await answer.json();
    this.known = new Map(items.filter((item) => item.source === "INCIDENT").map((item) => [item.alertId, {
      incidentId: item.alertId, kind: item.code, severity: item.level, tripId: item.informed[0]?.tripId, openedAt: item.updatedAt, closedAt: null,
      text: item.description.en, handledState: null,
    }]));
    this.draw();
  }

  async signIn(token) {
    const said = await this.ask("/v1/incidents?open=true&limit=100", token);
    if (!said?.ok) {
      sessionStorage.removeItem("token");
      $("sign-in-said").textContent = said ? "This token does not open the incidents of an operator." : "The engine does not answer.";
      if (!this.channel) this.poll();
      return;
    }
    this.token = token;
    sessionStorage.setItem("token", token);
    $("sign-in").classList.add("hidden");
    this.known = new Map((await said.json()).items.map((item) => [item.incidentId, item]));
    this.channel = `incidents:${await partnerOf(token)}`;
    this.live.signIn(token);
    this.live.subscribe(this.channel);
    this.draw();
  }

  ask(path, token, more = {}) {
    return fetch(path, { ...more, headers: { Authorization: `Bearer ${token}`, ...more.headers } }).catch(() => null);
  }

  /** A push of the live socket; true where it was ours. */
  hear(kind, data, channels) {
    if (!this.channel || !channels.includes(this.channel)) return false;
    for (const said of kind === "snapshot" ? data : [data]) this.known.set(said.incidentId, { ...this.known.get(said.incidentId), ...said });
    this.draw();
    return true;
  }

  async acknowledge(incident) {
    const body = JSON.stringify({ state: "ACKNOWLEDGED" });
    const path = `/v1/incidents/${encodeURIComponent(incident.incidentId)}`;
    const answer = await this.ask(path, this.token, { method: "PATCH", body, headers: { "Content-Type": "application/json" } });
    if (answer?.ok) this.known.set(incident.incidentId, { ...incident, handledState: "ACKNOWLEDGED" });
    this.draw();
  }

  draw() {
    const now = Date.now();
    for (const [id, one] of this.known) if (isOver(one) && now - Date.parse(one.closedAt ?? one.openedAt) > KEPT_MS) this.known.delete(id);
    const later = (a, b) => isOver(a) - isOver(b) || Date.parse(b.openedAt) - Date.parse(a.openedAt); // what goes on first, then the newest
    const shown = [...this.known.values()].sort(later).slice(0, SHOWN_MAX);
    const open = shown.filter((one) => !isOver(one) && !one.handledState).length;
    $("inbox-count").textContent = open;
    $("inbox-toggle").dataset.any = String(open > 0);
    $("inbox-empty").classList.toggle("hidden", shown.length > 0);
    const focused = document.activeElement?.closest?.(".incident")?.dataset.id;
    $("incidents").replaceChildren(...shown.map((one) => this.row(one, now)));
    if (focused) $("incidents").querySelector(`[data-id="${CSS.escape(focused)}"] button`)?.focus();
  }

  row(one, now) {
    const row = document.createElement("li");
    row.className = "incident";
    row.dataset.id = one.incidentId;
    row.dataset.severity = SEVERITIES[one.severity] ?? one.severity;
    row.classList.toggle("handled", Boolean(one.handledState));
    row.classList.toggle("over", isOver(one));
    row.classList.toggle("moment", one.closedAt === one.openedAt); // a missed stop has no length
    const main = document.createElement("button");
    main.className = "plain";
    main.append(span("what", KINDS[one.kind] ?? one.kind), span("severity", SEVERITIES[one.severity] ?? one.severity), span("who", whoWords(one)));
    main.append(span("soft", stateWords(one, now)));
    main.onclick = () => this.choose(one);
    row.append(main);
    if (this.channel && !one.handledState && !isOver(one)) {
      const seen = document.createElement("button");
      seen.className = "seen";
      seen.textContent = "Acknowledge";
      seen.setAttribute("aria-label", `Acknowledge: ${KINDS[one.kind] ?? one.kind}, ${whoWords(one)}`);
      seen.onclick = () => this.acknowledge(one);
      row.append(seen);
    }
    return row;
  }
}

function isOver(one) { return one.closedAt !== null || one.handledState === "CLOSED"; }

function whoWords(one) {
  if (!one.busId) return one.text ?? "";
  const line = one.routeId ? `, line ${one.routeId.split(":").slice(1).join(":")}` : "";
  return `Bus ${one.busId}${line}`;
}

function stateWords(one, now) {
  const minutes = Math.round((now - Date.parse(one.openedAt)) / 60_000);
  const since = minutes < 1 ? "just now" : minutes < 60 ? `${minutes} min ago` : `${Math.round(minutes / 60)} h ago`;
  const off = one.detail?.maxOffsetM ? `, ${one.detail.maxOffsetM} m away` : "";
  const state = isOver(one) ? (one.closedAt === one.openedAt ? "" : ", over") : one.handledState ? `, ${HANDLED[one.handledState]}` : "";
  return since + off + state;
}

/** Whose incidents a token opens: its operator's; of one who sees all, those of the first operator there is. */
async function partnerOf(token) {
  const claims = JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
  if (claims.partner) return claims.partner;
  const routes = await (await fetch("/v1/routes?limit=1")).json();
  return routes.items[0]?.partnerId ?? "";
}

function span(className, words) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = words;
  return element;
}
