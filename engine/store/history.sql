-- The record of tracking: written by one writer at a time with its cursor in the same transaction, read by REST. Parameters are $1 ... $n.

-- name: cursors
-- How far the writer has come in each stream of every area.
select area, stream, cursor from telemetry.cursors;

-- name: move_cursor
-- The writer's place, if it still is where the writer believes: no row means that another writer has been here.
insert into telemetry.cursors (area, stream, cursor) values ($1, $2, $4)
on conflict (area, stream) do update set cursor = excluded.cursor, updated_at = now() where telemetry.cursors.cursor = $3
returning cursor;

-- name: add_names
-- Names not met before.
insert into telemetry.names (name) select unnest($1::text[]) on conflict (name) do nothing;

-- name: names
-- Their numbers.
select name, no from telemetry.names where name = any($1::text[]);

-- name: copy_points
-- Fixes that are all new: pages at a time, a third of what a statement with ON CONFLICT costs. Refused as a whole where one is there already.
copy telemetry.points (
  ts, bus_no, lat_e6, lon_e6, latency_ms, device_no, source_no, state_no, late,
  speed_cms, bearing_ddeg, accuracy_dm, offset_dm, along_m, seq, trip_no, start_date) from stdin (format binary);

-- name: stage
-- Where fixes wait that may be there already: this connection's own, emptied by every commit.
create temporary table if not exists staged_points (like telemetry.points) on commit delete rows;

-- name: copy_staged
-- The same columns as copy_points.
copy staged_points (
  ts, bus_no, lat_e6, lon_e6, latency_ms, device_no, source_no, state_no, late,
  speed_cms, bearing_ddeg, accuracy_dm, offset_dm, along_m, seq, trip_no, start_date) from stdin (format binary);

-- name: add_staged
-- What was staged, once each: a fix that came twice changes nothing.
-- Answers what was new: how many fixes in one row without a bus, and of each bus with late ones how many and from when to when (ms).
with added as (insert into telemetry.points (
  ts, bus_no, lat_e6, lon_e6, latency_ms, device_no, source_no, state_no, late,
  speed_cms, bearing_ddeg, accuracy_dm, offset_dm, along_m, seq, trip_no, start_date)
select ts, bus_no, lat_e6, lon_e6, latency_ms, device_no, source_no, state_no, late,
  speed_cms, bearing_ddeg, accuracy_dm, offset_dm, along_m, seq, trip_no, start_date
  from staged_points
on conflict do nothing returning bus_no, ts, late)
select case when late then bus_no end as bus_no, count(*) as added,
       round(extract(epoch from min(ts)) * 1000)::bigint as since_ms, round(extract(epoch from max(ts)) * 1000)::bigint as until_ms
  from added group by late, 1;

-- name: add_quarantined
-- What history does not keep among the points, with its reason.
insert into telemetry.quarantine (received_at, device_id, fingerprint, area, bus_id, source, reason, ts, lat, lon, detail)
select to_timestamp(received / 1000.0), device, fingerprint, $1, bus, source, reason, to_timestamp(ms / 1000.0), lat, lon, detail
  from unnest(
    $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::float8[], $10::float8[], $11::text[]
  ) as t(received, device, fingerprint, bus, source, reason, ms, lat, lon, detail)
on conflict do nothing;

-- name: add_stop_events
-- Stops served, passed and missed; an event id says it once.
insert into telemetry.stop_events (
  event_id, at, area, bus_id, trip_id, start_date, route_id, stop_id, stop_sequence, arrived_at, departed_at, kind, late)
select event, to_timestamp(coalesce(arrived, departed, $2::bigint) / 1000.0), $1, bus, trip, start_date, route, stop, sequence,
       to_timestamp(arrived / 1000.0), to_timestamp(departed / 1000.0), kind, late
  from unnest(
    $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::int[], $10::bigint[], $11::bigint[], $12::text[], $13::boolean[]
  ) as t(event, bus, trip, start_date, route, stop, sequence, arrived, departed, kind, late)
on conflict do nothing;

-- name: add_trip_events
-- Trips given, started, completed; an event id says it once.
insert into telemetry.trip_events (event_id, at, area, bus_id, trip_id, start_date, route_id, kind, reason, late)
select event, to_timestamp(ms / 1000.0), $1, bus, trip, start_date, route, kind, reason, late
  from unnest($2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::boolean[])
       as t(event, ms, bus, trip, start_date, route, kind, reason, late)
on conflict do nothing;

-- name: add_forecasts
-- Arrivals as they were published, once each. Arrays of each row come as text.
insert into telemetry.forecasts (made_at, bus_no, area_no, trip_no, start_date, first_sequence, sequences, p10_s, p50_s, p90_s)
select to_timestamp(ms / 1000.0), bus, area, trip, start_date, first_sequence, sequences::int[], p10::smallint[], p50::smallint[], p90::smallint[]
  from unnest(
    $1::bigint[], $2::int[], $3::int[], $4::int[], $5::int[], $6::int[], $7::text[], $8::text[], $9::text[], $10::text[]
  ) as t(ms, bus, area, trip, start_date, first_sequence, sequences, p10, p50, p90)
on conflict do nothing;

-- name: say_incident
-- The newest saying of an episode. A closed one is not opened again by an older saying that comes later.
insert into telemetry.incidents as i (
  incident_id, said_id, area, kind, severity, bus_id, trip_id, start_date, route_id, opened_at, closed_at, lat, lon, detail, late)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, to_timestamp($10::bigint / 1000.0), to_timestamp($11::bigint / 1000.0), $12, $13, $14::jsonb, $15)
on conflict (incident_id) do update set
  said_id = excluded.said_id, severity = excluded.severity, closed_at = excluded.closed_at, lat = excluded.lat, lon = excluded.lon,
  detail = excluded.detail, late = excluded.late
 where i.said_id <> excluded.said_id and (i.closed_at is null or excluded.closed_at is not null);

-- name: ask_repairs
-- Late fixes were written: look at their trips $5 seconds after the last of them, ten times that after the first at the latest.
-- One that failed keeps the time to which it was put off.
insert into telemetry.repairs as r (area, bus_id, since, until, asked_at, due_at)
select $1, bus, to_timestamp(since / 1000.0), to_timestamp(until / 1000.0), now(), now() + make_interval(secs => $5)
  from unnest($2::text[], $3::bigint[], $4::bigint[]) as t(bus, since, until)
on conflict (area, bus_id) do update set
  since = least(r.since, excluded.since), until = greatest(r.until, excluded.until), turn = r.turn + 1,
  due_at = case when r.tries > 0 then r.due_at else least(excluded.due_at, r.asked_at + make_interval(secs => $5 * 10)) end;

-- name: due_repair
-- The repair that has waited longest.
select area, bus_id, since, until, turn, tries from telemetry.repairs where due_at <= now() order by due_at limit 1;

-- name: repairs_waiting
-- How many wait, due or not.
select count(*) from telemetry.repairs;

-- name: put_off_repair
-- It failed: once more in $3 seconds, after the others.
update telemetry.repairs set tries = tries + 1, due_at = now() + make_interval(secs => $3) where area = $1 and bus_id = $2;

-- name: end_repair
-- Done, unless more was asked for since turn $3.
delete from telemetry.repairs where area = $1 and bus_id = $2 and turn = $3;

-- name: trips_around
-- Trips of one bus that its fixes from $2 to $3 may belong to: those of the fixes themselves, and of the nearest ones within 3 h before and after.
select n.name as trip_id, t.start_date, min(t.ts) as ts from (
  select trip_no, start_date, ts from telemetry.points
   where bus_no = (select no from telemetry.names where name = $1) and ts >= $2 and ts <= $3 and trip_no is not null
  union all
  (select trip_no, start_date, ts from telemetry.points
    where bus_no = (select no from telemetry.names where name = $1) and ts >= $2 - interval '3 hours' and ts < $2 and trip_no is not null
    order by ts desc limit 1)
  union all
  (select trip_no, start_date, ts from telemetry.points
    where bus_no = (select no from telemetry.names where name = $1) and ts > $3 and ts <= $3 + interval '3 hours' and trip_no is not null
    order by ts limit 1)
) t join telemetry.names n on n.no = t.trip_no group by 1, 2 order by 3 limit $4;

-- name: place_late
-- Late fixes of one bus, put on the trip and the shape by a repair.
update telemetry.points p set trip_no = (select no from telemetry.names where name = $2), start_date = $3, along_m = t.along, offset_dm = t.away
  from unnest($4::timestamptz[], $5::int[], $6::int[], $7::int[], $8::smallint[]) as t(ts, lat, lon, along, away)
 where p.bus_no = (select no from telemetry.names where name = $1) and p.ts >= $9 and p.ts <= $10
   and p.ts = t.ts and p.lat_e6 = t.lat and p.lon_e6 = t.lon and p.late;

-- name: mend_stop_events
-- Stops made again from all fixes: new ones are added, known ones changed where they differ by more than a second (columns hold 0.1 m).
insert into telemetry.stop_events as s (
  event_id, at, area, bus_id, trip_id, start_date, route_id, stop_id, stop_sequence, arrived_at, departed_at, kind, late)
select event, coalesce(to_timestamp(arrived / 1000.0), to_timestamp(departed / 1000.0), now()), $1, bus, trip, start_date, route, stop,
       sequence, to_timestamp(arrived / 1000.0), to_timestamp(departed / 1000.0), kind, late
  from unnest(
    $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::int[], $9::bigint[], $10::bigint[], $11::text[], $12::boolean[]
  ) as t(event, bus, trip, start_date, route, stop, sequence, arrived, departed, kind, late)
on conflict (event_id) do update set
  at = excluded.at, arrived_at = excluded.arrived_at, departed_at = excluded.departed_at, kind = excluded.kind, late = true
 where s.kind <> excluded.kind
    or coalesce(abs(extract(epoch from s.arrived_at - excluded.arrived_at)) > 1, s.arrived_at is distinct from excluded.arrived_at)
    or coalesce(abs(extract(epoch from s.departed_at - excluded.departed_at)) > 1, s.departed_at is distinct from excluded.departed_at);

-- name: drop_other_sayings
-- A stop of a trip has one saying: what was said under another id (an attempt to begin that late fixes took back) goes.
delete from telemetry.stop_events
 where bus_id = $1 and trip_id = $2 and start_date = $3 and stop_sequence = any($4::int[]) and event_id <> all($5::text[]);

-- name: mode
-- plain | apache | timescale.
select val from telemetry.meta where key = 'mode';

-- name: tick_lock
-- One engine ticks at a time; the lock ends with the transaction.
select pg_try_advisory_xact_lock(7203117);

-- name: ensure_partitions
-- Days around now: $1 back, $2 ahead.
select telemetry.ensure_partitions($1, $2);

-- name: drop_points
-- Days of points older than $1 days.
select telemetry.drop_points(make_interval(days => $1));

-- name: ensure_forecast_days
-- Days of forecasts around now: $1 back, $2 ahead.
select telemetry.ensure_forecast_days($1, $2);

-- name: drop_forecasts
-- Days of forecasts older than $1 days.
select telemetry.drop_forecasts(make_interval(days => $1));

-- name: drop_eta_accuracy
-- Accuracy of days over $1 days ago, at most 20,000 rows a minute.
delete from telemetry.eta_accuracy where ctid = any(array(
  select ctid from telemetry.eta_accuracy where day < (now() - make_interval(days => $1))::date limit 20000));

-- name: drop_eta_days
-- That those days were worked out.
delete from telemetry.eta_days where day < (now() - make_interval(days => $1))::date;

-- name: drop_quarantined
-- What was quarantined over $1 days ago, at most 20,000 rows a minute.
delete from telemetry.quarantine where ctid = any(array(
  select ctid from telemetry.quarantine where received_at < now() - make_interval(days => $1) limit 20000));

-- name: drop_stop_events
-- Stop events over $1 days old, at most 20,000 rows a minute.
delete from telemetry.stop_events where ctid = any(array(
  select ctid from telemetry.stop_events where at < now() - make_interval(days => $1) limit 20000));

-- name: drop_trip_events
-- Trip events over $1 days old, at most 20,000 rows a minute.
delete from telemetry.trip_events where ctid = any(array(
  select ctid from telemetry.trip_events where at < now() - make_interval(days => $1) limit 20000));

-- name: bus_history
-- One bus from $2 to $3 in buckets of $4 seconds: how many fixes, speeds, distance from the shape, latency, where it stood at the end.
-- The last place of a bucket is looked up afterwards: gathering it in the aggregate meant a sort of the day on disk.
with found as (
  select date_bin(make_interval(secs => $4), p.ts, timestamptz '2000-01-01 00:00:00+00') as bucket, p.bus_no,
         count(*) as n, sum(p.speed_cms) as speed, count(p.speed_cms) as speeds, max(p.speed_cms) as fastest, max(p.offset_dm) as farthest,
         sum(p.latency_ms) as latency, min(p.ts) as first_at, max(p.ts) as last_at
    from telemetry.points p
   where p.bus_no = (select no from telemetry.names where name = $1) and p.ts >= $2 and p.ts < $3
   group by 1, 2 order by 1 limit $5
)
select f.bucket, f.n, f.speed / (100::float8 * nullif(f.speeds, 0)) as mean_speed_mps, f.fastest / 100::float8 as max_speed_mps,
       f.farthest / 10::float8 as max_offset_m, f.latency / f.n::float8 as mean_latency_ms, f.first_at, f.last_at,
       l.lat_e6 / 1e6::float8 as lat, l.lon_e6 / 1e6::float8 as lon
  from found f
 cross join lateral (select p.lat_e6, p.lon_e6 from telemetry.points p where p.bus_no = f.bus_no and p.ts = f.last_at limit 1) l
 order by f.bucket;

-- name: playback
-- The fixes of one bus from $2 to $3 in order, at most $4; trip and state as numbers of names (see names_of).
select p.ts, p.lat_e6 / 1e6::float8 as lat, p.lon_e6 / 1e6::float8 as lon, p.speed_cms / 100::float8 as speed_mps,
       p.bearing_ddeg / 10::float8 as bearing_deg, p.accuracy_dm / 10::float8 as accuracy_m, p.along_m, p.offset_dm / 10::float8 as offset_m,
       p.trip_no, p.start_date, p.state_no, p.late, p.latency_ms
  from telemetry.points p
 where p.bus_no = (select no from telemetry.names where name = $1) and p.ts >= $2 and p.ts < $3
 order by p.ts limit $4;

-- name: names_of
-- The names behind some numbers.
select no, name from telemetry.names where no = any($1::int[]);

-- name: last_position
-- The newest fix of one bus since $2, as playback gives it.
select p.ts, p.lat_e6 / 1e6::float8 as lat, p.lon_e6 / 1e6::float8 as lon, p.speed_cms / 100::float8 as speed_mps,
       p.bearing_ddeg / 10::float8 as bearing_deg, p.accuracy_dm / 10::float8 as accuracy_m, p.along_m, p.offset_dm / 10::float8 as offset_m,
       p.trip_no, p.start_date, p.state_no, p.late, p.latency_ms
  from telemetry.points p
 where p.bus_no = (select no from telemetry.names where name = $1) and p.ts >= $2 and not p.late
 order by p.ts desc limit 1;

-- name: quarantine
-- What was quarantined of one device, newest first, before $2, or at $2 with a fingerprint after $4 (null: none), at most $3.
select received_at, device_id, area, bus_id, source, reason, ts, lat, lon, detail, fingerprint from telemetry.quarantine
 where device_id = $1 and (received_at < $2 or (received_at = $2 and fingerprint > $4))
 order by received_at desc, fingerprint limit $3;
