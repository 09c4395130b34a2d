-- name: order_lock
-- One word at a time in a feed: what overlaps is judged on what is true then.
select pg_advisory_xact_lock(hashtextextended('fleet.trip_order:' || $1::text, 0));

-- name: order_of_trip
-- The word in force on a trip instance.
select order_id::text, trip_id, start_date, bus_id, driver_id, said_as, said_by, reason, said_at, withdrawn_at, withdrawn_by
  from fleet.trip_order where feed_id = $1 and trip_id = $2 and start_date = $3 and withdrawn_at is null;

-- name: orders_of_bus
-- Words in force on a bus, of trips that are not long over.
select order_id::text, trip_id, start_date, bus_id, driver_id, said_as, said_by, reason, said_at, withdrawn_at, withdrawn_by
  from fleet.trip_order where feed_id = $1 and bus_id = $2 and withdrawn_at is null and ends_at > $3 order by said_at, order_id;

-- name: orders_on_trip
-- Every word on a trip instance, oldest first.
select order_id::text, trip_id, start_date, bus_id, driver_id, said_as, said_by, reason, said_at, withdrawn_at, withdrawn_by
  from fleet.trip_order where feed_id = $1 and trip_id = $2 and start_date = $3 order by said_at, order_id limit 200;

-- name: withdraw
-- Takes words back.
update fleet.trip_order set withdrawn_at = $2, withdrawn_by = $3 where order_id = any($1::uuid[]) and withdrawn_at is null;

-- name: add_order
-- A word on who drives a trip instance.
insert into fleet.trip_order (order_id, feed_id, trip_id, start_date, bus_id, driver_id, said_as, said_by, reason, said_at, ends_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: bus_of_feed
-- Whether a bus of the partner drives for that feed.
select 1 from fleet.bus where bus_id = $1 and partner_id = $2 and area = $3 and retired_at is null;

-- name: trip_events
-- What the tracker said of a trip instance, oldest first.
select at, bus_id, kind, reason from telemetry.trip_events
 where area = $1 and trip_id = $2 and start_date = $3 and not late order by at, event_id limit 500;
