// The live socket: subscribe, resume where we were, come back after a fall. One socket a page.

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;
const SILENCE_MS = 40_000; // we ask every 20 s; no answer to two of them means that the line is dead

export class Live {
  /** `onPush(kind, data, channels)` gets every push, batches already taken apart; `onState` one of connecting, live, reconnecting. */
  constructor({ onPush, onState = () => {} }) {
    this.onPush = onPush;
    this.onState = onState;
    this.channels = new Map(); // name -> {e, o} where we were
    this.token = null;
    this.box = null;
    this.pause = FIRST_PAUSE_MS;
    this.number = 0;
    this.asked = new Map();
    this.connect();
  }

  connect() {
    const url = new URL("/ws", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(url, "timepoint.v1.json");
    this.socket.onopen = () => {
      this.pause = FIRST_PAUSE_MS;
      this.heardAt = Date.now();
      if (this.token) this.ask("auth", { token: this.token });
      for (const [channel, since] of this.channels) this.ask("sub", { ch: channel, ...(since ? { since } : {}) });
      if (this.box) this.ask("bbox", this.box);
      this.onState("live");
      this.beat = setInterval(() => this.check(), 20_000);
    };
    this.socket.onmessage = (event) => {
      this.heardAt = Date.now();
      this.read(JSON.parse(event.data));
    };
    this.socket.onclose = () => {
      clearInterval(this.beat);
      this.onState("reconnecting");
      setTimeout(() => this.connect(), this.pause * (0.5 + Math.random()));
      this.pause = Math.min(LONGEST_PAUSE_MS, this.pause * 2);
    };
  }

  check() {
    if (Date.now() - this.heardAt > SILENCE_MS) this.socket.close();
    else this.ask("ping", {});
  }

  /** From now on, and after each fall: what follows is asked for by whoever the token names. */
  signIn(token) {
    this.token = token;
    if (this.socket.readyState === WebSocket.OPEN) this.ask("auth", { token });
  }

  subscribe(channel) {
    this.channels.set(channel, null);
    if (this.socket.readyState === WebSocket.OPEN) this.ask("sub", { ch: channel });
  }

  unsubscribe(channel) {
    if (this.channels.delete(channel) && this.socket.readyState === WebSocket.OPEN) this.ask("unsub", { ch: channel });
  }

  look(box, zoom) {
    this.box = { box, zoom };
    if (this.socket.readyState === WebSocket.OPEN) this.ask("bbox", this.box);
  }

  ask(op, fields) {
    const id = ++this.number;
    if (op === "sub") this.asked.set(id, fields.ch);
    this.socket.send(JSON.stringify({ id, op, ...fields }));
  }

  read(message) {
    if (message.t === "batch") {
      message.d.forEach((one) => this.read(one));
      return;
    }
    if (message.t === undefined) {
      const channel = this.asked.get(message.id);
      this.asked.delete(message.id);
      if (channel && message.ok && this.channels.has(channel)) this.channels.set(channel, { e: message.e, o: message.o });
      else if (message.error) console.warn("refused", channel ?? "", message.error.code);
      return;
    }
    const names = Array.isArray(message.ch) ? message.ch : [message.ch];
    const offsets = Array.isArray(message.o) ? message.o : [message.o];
    names.forEach((name, at) => {
      const where = this.channels.get(name);
      if (where) where.o = offsets[at];
    });
    this.onPush(message.t, message.d, names);
  }
}
