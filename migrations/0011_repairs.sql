-- Late fixes ask for a repair of their bus's history: the stops of the trips around them are made again (engine/tracking/repair.py).
-- One row a bus; asked for in the transaction that writes the fixes, taken away in the one that writes the stops.

create table telemetry.repairs (
  area text not null,
  bus_id text not null,
  since timestamptz not null,                             -- times of the first and the last late fix
  until timestamptz not null,
  turn bigint not null default 1,                         -- goes up when more comes: a repair that began before does not take the row away
  asked_at timestamptz not null,
  due_at timestamptz not null,                            -- a backlog comes in pieces: some seconds after its last one
  primary key (area, bus_id)
);
create index repairs_due on telemetry.repairs (due_at);
