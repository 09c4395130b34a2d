import { classOf, delayWords, icon } from "./buses.js";

const list = document.getElementById("running");

async function show() {
  const answer = await fetch("/v1/buses/locations?bbox=-180,-85,180,85&limit=100");
  const { items } = await answer.json();
  const running = items.filter((bus) => bus.tripId).slice(0, 12);
  list.replaceChildren(...running.map((bus) => {
    const row = document.createElement("li");
    const link = document.createElement("a");
    link.href = `/trip/${encodeURIComponent(bus.tripId)}`;
    link.textContent = `${bus.busId} on route ${bus.routeId?.split(":").slice(1).join(":") ?? "?"}`;
    const how = document.createElement("span");
    how.className = "mark";
    how.append(icon(classOf(bus, Date.now())), delayWords(bus.delayS));
    row.append(link, how);
    return row;
  }));
  if (running.length === 0) list.innerHTML = '<li class="soft">No bus is on a trip right now.</li>';
}

show().catch(() => { list.innerHTML = '<li class="soft">The engine does not answer.</li>'; });
setInterval(() => show().catch(() => {}), 5_000);
