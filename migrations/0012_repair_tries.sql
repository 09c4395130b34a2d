-- A repair that fails is put off and at last given up, and mends only trips that were driven on the timetable in force (engine/tracking/repair.py).

alter table telemetry.repairs add column tries integer not null default 0;  -- how often it failed since it was asked for

-- Since when a feed's version is in force. Of feeds that are older than this column nobody knows it: since now, as far as can be told.
alter table network.feed add column activated_at timestamptz not null default now();
