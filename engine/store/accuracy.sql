-- Accuracy of published arrivals: what the nightly job reads and writes, and what the analytics read. Parameters are $1 ... $n.

-- name: computed_days
-- Service dates of an area from $2 on that are worked out, and when.
select day, computed_at from telemetry.eta_days where area = $1 and day >= $2;

-- name: trips
-- What was driven of a service date, by the stops that were said between two instants.
select distinct route_id, trip_id from telemetry.stop_events
 where area = $1 and start_date = $2 and at >= $3 and at < $4
 order by route_id, trip_id limit $5;

-- name: first_sample
-- Since when samples were kept between two instants; null: none were.
select min(made_at) from telemetry.forecasts
 where area_no = (select no from telemetry.names where name = $1) and made_at >= $2 and made_at < $3;

-- name: arrivals
-- When vehicles were measured at the stops of some trips of one service date; those that were filled in or missed say nothing.
select trip_id, bus_id, stop_sequence, (extract(epoch from arrived_at) * 1000)::bigint as arrived_ms
  from telemetry.stop_events
 where trip_id = any($3::text[]) and start_date = $2 and area = $1 and kind in ('SERVED', 'PASSED') and arrived_at is not null
 order by trip_id, bus_id, stop_sequence;

-- name: published
-- What was published of some trips of one service date between two instants, at most $6 samples.
select t.name as trip_id, b.name as bus_id, (extract(epoch from f.made_at) * 1000)::bigint as made_ms, f.first_sequence, f.sequences,
       f.p10_s, f.p50_s, f.p90_s
  from telemetry.forecasts f
  join telemetry.names t on t.no = f.trip_no
  join telemetry.names b on b.no = f.bus_no
 where f.trip_no = any(array(select no from telemetry.names where name = any($3::text[]))) and f.start_date = $2
   and f.area_no = (select no from telemetry.names where name = $1) and f.made_at >= $4 and f.made_at < $5
 order by f.trip_no, f.bus_no, f.made_at limit $6;

-- name: forget_day
-- What an earlier run said of a day.
delete from telemetry.eta_accuracy where area = $1 and day = $2;

-- name: keep_route
-- One route of a day, bucket by bucket.
insert into telemetry.eta_accuracy (
  day, area, route_id, horizon, from_s, to_s, samples, missing, in_window, covered, early, error_sum_s, size_sum_s, p50_s, p90_s)
select $1, $2, t.* from unnest(
  $3::text[], $4::text[], $5::int[], $6::int[], $7::int[], $8::int[], $9::int[], $10::int[], $11::int[], $12::bigint[], $13::bigint[],
  $14::int[], $15::int[]) as t;

-- name: keep_day
-- That a day is worked out.
insert into telemetry.eta_days (day, area, computed_at, rides, samples) values ($1, $2, $3, $4, $5)
on conflict (area, day) do update set computed_at = excluded.computed_at, rides = excluded.rides, samples = excluded.samples;

-- name: route_days
-- Days and routes of some areas from $2 to $3, newest day first, after the place ($5, $6, $7); $4: only of this route (null: all).
select day, area, route_id from telemetry.eta_accuracy
 where area = any($1::text[]) and day >= $2 and day <= $3 and ($4::text is null or route_id = $4)
   and ($5::date is null or day < $5 or (day = $5 and (area, route_id) > ($6, $7)))
 group by day, area, route_id order by day desc, area, route_id limit $8;

-- name: buckets
-- The buckets of some of them.
select a.day, a.area, a.route_id, a.horizon, a.from_s, a.to_s, a.samples, a.missing, a.in_window, a.covered, a.early, a.error_sum_s,
       a.size_sum_s, a.p50_s, a.p90_s
  from telemetry.eta_accuracy a
  join unnest($1::date[], $2::text[], $3::text[]) as w (day, area, route_id) using (day, area, route_id)
 order by a.day desc, a.area, a.route_id, a.horizon, a.from_s;

-- name: totals
-- All days and routes of some areas from $2 to $3 in one; quantiles cannot be added up.
select horizon, from_s, to_s, sum(samples)::bigint as samples, sum(missing)::bigint as missing, sum(in_window)::bigint as in_window,
       sum(covered)::bigint as covered, sum(early)::bigint as early, sum(error_sum_s)::bigint as error_sum_s,
       sum(size_sum_s)::bigint as size_sum_s, null::int as p50_s, null::int as p90_s
  from telemetry.eta_accuracy
 where area = any($1::text[]) and day >= $2 and day <= $3 and ($4::text is null or route_id = $4)
 group by horizon, from_s, to_s order by horizon, from_s;
