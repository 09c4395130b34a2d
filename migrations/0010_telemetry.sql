-- History: fixes with their verdict, what was refused, stop events, trip events, incidents, and how far the writer has come.
--
-- One schema in three modes, decided here once and recorded in telemetry.meta:
--   plain      daily range partitions
--   apache     a TimescaleDB hypertable (Apache edition: chunk exclusion, drop_chunks)
--   timescale  the same with the community licence: columnstore after 7 days
-- `alter database x set app.timescale = 'off'` before this migration asks for plain.

create schema telemetry;

create table telemetry.meta (key text primary key, val text not null);

-- Ids of buses, devices, trips, sources, states and verdicts, once each: a row of points then takes 60 bytes instead of 150.
create table telemetry.names (
  no int generated always as identity primary key,
  name text not null unique
);

-- How far a reader of an area's stream has come; written in the transaction of what it wrote.
create table telemetry.cursors (
  area text not null,
  stream text not null,                                 -- out | quarantine
  cursor text not null,                                 -- a Redis stream id, ms-seq
  updated_at timestamptz not null default now(),
  primary key (area, stream)
);

do $mode$
declare
  loaded boolean := current_setting('timescaledb.disable_load', true) is not null; -- CREATE EXTENSION without the preloaded loader is FATAL
  offered boolean := exists (select from pg_available_extensions where name = 'timescaledb');
  wanted boolean := coalesce(current_setting('app.timescale', true), 'auto') <> 'off';
  mode text := 'plain';
begin
  if wanted and offered and loaded then
    create extension if not exists timescaledb;
    mode := case current_setting('timescaledb.license') when 'timescale' then 'timescale' else 'apache' end;
  end if;
  insert into telemetry.meta values ('mode', mode);

  execute $t$
    create table telemetry.points (
      ts timestamptz not null,                            -- when the receiver says it was there
      bus_no int not null,
      lat_e6 int not null,                                -- micro-degrees: 0.11 m
      lon_e6 int not null,
      latency_ms int not null,                            -- received minus ts
      device_no int not null,
      source_no int not null,
      state_no int,
      late boolean not null,                              -- verdict LATE: came after a newer one, moved nothing
      speed_cms smallint,                                 -- cm/s
      bearing_ddeg smallint,                              -- tenths of a degree
      accuracy_dm smallint,
      offset_dm smallint,                                 -- from the shape; 3,276 m and more stand as 32,767
      along_m int,
      seq bigint,
      trip_no int,
      start_date int,                                     -- yyyymmdd
      primary key (bus_no, ts, lat_e6, lon_e6)            -- the same fix over two ways is one row
    ) $t$ || case mode when 'plain' then 'partition by range (ts)' else '' end;
  if mode <> 'plain' then
    perform create_hypertable('telemetry.points', by_range('ts', interval '1 day'), create_default_indexes => false);
  end if;
  create index points_ts on telemetry.points using brin (ts) with (pages_per_range = 32);
  if mode = 'timescale' then
    alter table telemetry.points
      set (timescaledb.compress, timescaledb.compress_segmentby = 'bus_no', timescaledb.compress_orderby = 'ts desc');
    perform add_compression_policy('telemetry.points', interval '7 days');
  end if;
end $mode$;

-- What is not in points: fixes with another verdict, those outside the history's window, and what the door refused. Never lost, always readable.
create table telemetry.quarantine (
  received_at timestamptz not null,
  device_id text not null,
  fingerprint bigint not null,                            -- of the whole record: the same saying twice is one row
  area text not null,
  bus_id text,
  source text not null,
  reason text not null,
  ts timestamptz,                                         -- null: the door could not read one
  lat double precision,
  lon double precision,
  detail text not null,
  primary key (device_id, received_at, fingerprint)
);
create index quarantine_received on telemetry.quarantine using brin (received_at);

create table telemetry.stop_events (
  event_id text primary key,
  at timestamptz not null,                                -- arrival, else departure, else when it was written down
  area text not null,
  bus_id text not null,
  trip_id text not null,
  start_date text not null,
  route_id text not null,
  stop_id text not null,
  stop_sequence int not null,
  arrived_at timestamptz,
  departed_at timestamptz,
  kind text not null,                                     -- SERVED | PASSED | MISSED | INTERPOLATED
  late boolean not null
);
create index stop_events_at on telemetry.stop_events using brin (at);
create index stop_events_trip on telemetry.stop_events (trip_id, start_date, stop_sequence);

create table telemetry.trip_events (
  event_id text primary key,
  at timestamptz not null,
  area text not null,
  bus_id text not null,
  trip_id text not null,
  start_date text not null,
  route_id text not null,
  kind text not null,                                     -- ASSIGNED | STARTED | COMPLETED | UNASSIGNED
  reason text not null,
  late boolean not null
);
create index trip_events_at on telemetry.trip_events using brin (at);
create index trip_events_bus on telemetry.trip_events (bus_id, at);

-- One row an episode: its newest saying. `handled` columns belong to people, the writer never touches them.
create table telemetry.incidents (
  incident_id text primary key,
  said_id text not null,                                  -- event id of the newest saying
  area text not null,
  kind text not null,
  severity text not null,
  bus_id text not null,
  trip_id text,
  start_date text,
  route_id text,
  opened_at timestamptz not null,
  closed_at timestamptz,
  lat double precision not null,
  lon double precision not null,
  detail jsonb not null,
  late boolean not null,
  handled_by text,
  handled_at timestamptz,
  handled_state text constraint incident_handled check (handled_state in ('ACKNOWLEDGED', 'ASSIGNED', 'CLOSED')),
  assigned_to text
);
create index incidents_opened on telemetry.incidents (area, opened_at desc);
create index incidents_open on telemetry.incidents (area) where closed_at is null;

-- Partitions for the days around now. No DEFAULT partition: what fits none is quarantined by the writer.
create function telemetry.ensure_partitions(back int, ahead int) returns int
language plpgsql security definer set search_path = pg_catalog as $$
declare
  day date;
  made int := 0;
  part text;
begin
  if (select val from telemetry.meta where key = 'mode') <> 'plain' then return 0; end if;
  perform pg_advisory_xact_lock(hashtext('telemetry.points'));
  for day in select (now() at time zone 'utc')::date + i from generate_series(-back, ahead) i loop
    part := 'points_' || to_char(day, 'YYYYMMDD');
    if to_regclass('telemetry.' || part) is null then
      execute format('create table telemetry.%I partition of telemetry.points for values from (%L) to (%L)',
                     part, day::timestamp at time zone 'utc', (day + 1)::timestamp at time zone 'utc');
      made := made + 1;
    end if;
  end loop;
  return made;
end $$;

-- Whole days of points older than `keep`; answers how many went.
create function telemetry.drop_points(keep interval) returns int
language plpgsql security definer set search_path = pg_catalog, public as $$
declare
  found record;
  gone int := 0;
  cut timestamptz := now() - keep;
begin
  if (select val from telemetry.meta where key = 'mode') <> 'plain' then
    execute 'select count(*) from drop_chunks(''telemetry.points'', older_than => $1)' into gone using cut;
    return gone;
  end if;
  for found in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'telemetry.points'::regclass
       and to_date(substring(c.relname from '^points_(\d{8})$'), 'YYYYMMDD') + 1 <= (cut at time zone 'utc')::date
  loop
    execute format('drop table telemetry.%I', found.relname);
    gone := gone + 1;
  end loop;
  return gone;
end $$;

revoke execute on function telemetry.ensure_partitions(int, int), telemetry.drop_points(interval) from public;
grant execute on function telemetry.ensure_partitions(int, int), telemetry.drop_points(interval) to timepoint_app;

select telemetry.ensure_partitions(4, 7);
