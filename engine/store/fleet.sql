-- name: mark
-- The mark for the next `changed_*`: every transaction below it is finished and was visible to this snapshot.
select pg_snapshot_xmin(pg_current_snapshot())::text::bigint as mark

-- name: changed_devices
-- Devices of transactions from a mark on (0: all), retired ones too.
select d.device_id::text, d.partner_id, d.kind, d.name, d.bus_ids, d.unique_id, d.token_sha256, d.previous_sha256, d.generation,
       d.previous_until, d.created_at, d.rotated_at, d.retired_at, d.mqtt_hash, d.previous_mqtt_hash,
       null::timestamptz as seen_at
from fleet.device d
where d.changed_xid >= $1::text::xid8

-- name: changed_buses
-- Buses of transactions from a mark on (0: all), retired ones too.
select bus_id, partner_id, area, label, plate, retired_at from fleet.bus where changed_xid >= $1::text::xid8

-- name: seen
-- When devices were last heard; never back in time.
insert into fleet.device_seen (device_id, seen_at)
select s.device_id, s.seen_at
from unnest($1::uuid[], $2::timestamptz[]) as s (device_id, seen_at)
join fleet.device d using (device_id)
order by s.device_id
on conflict (device_id) do update set seen_at = greatest(device_seen.seen_at, excluded.seen_at)

-- name: put_buses
-- New buses, and changes to those of the same partner; the ids of the rows written (another partner's bus is not among them).
insert into fleet.bus as b (bus_id, partner_id, area, label, plate)
select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
on conflict (bus_id) do update
  set area = excluded.area, label = excluded.label, plate = excluded.plate, retired_at = null
  where b.partner_id = excluded.partner_id
returning bus_id

-- name: buses
-- A partner's buses by id, from a cursor on.
select bus_id, partner_id, area, label, plate, retired_at
from fleet.bus
where partner_id = $1 and bus_id > $2 and (retired_at is null or $4)
order by bus_id
limit $3

-- name: bus
-- One bus of one partner.
select bus_id, partner_id, area, label, plate, retired_at from fleet.bus where bus_id = $1 and partner_id = $2

-- name: retire_bus
-- Its fixes are refused from now on; its history stays.
update fleet.bus set retired_at = coalesce(retired_at, $3) where bus_id = $1 and partner_id = $2
returning bus_id, partner_id, area, label, plate, retired_at

-- name: buses_missing
-- Of these bus ids, those that are no working bus of the partner.
select wanted.bus_id
from unnest($1::text[]) as wanted (bus_id)
left join fleet.bus b on b.bus_id = wanted.bus_id and b.partner_id = $2 and b.retired_at is null
where b.bus_id is null

-- name: insert_devices
-- Many devices at once. Their bus ids come as one array of comma-separated lists: PostgreSQL has no arrays of unequal arrays.
insert into fleet.device (device_id, partner_id, kind, name, bus_ids, unique_id, token_sha256, mqtt_hash, created_at)
select n.device_id, n.partner_id, n.kind, n.name, string_to_array(n.bus_ids, ','), n.unique_id, n.token_sha256, n.mqtt_hash, n.created_at
from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[], $8::text[], $9::timestamptz[])
  as n (device_id, partner_id, kind, name, bus_ids, unique_id, token_sha256, mqtt_hash, created_at)

-- name: devices
-- A partner's devices by id (so by age), from a cursor on, with when they were last heard.
select d.device_id::text, d.partner_id, d.kind, d.name, d.bus_ids, d.unique_id, d.token_sha256, d.previous_sha256, d.generation,
       d.previous_until, d.created_at, d.rotated_at, d.retired_at, d.mqtt_hash, d.previous_mqtt_hash,
       s.seen_at
from fleet.device d
left join fleet.device_seen s using (device_id)
where d.partner_id = $1 and d.device_id > $2::uuid and (d.retired_at is null or $4) and ($5::text is null or d.bus_ids @> array[$5::text])
order by d.device_id
limit $3

-- name: device
-- One device of one partner.
select d.device_id::text, d.partner_id, d.kind, d.name, d.bus_ids, d.unique_id, d.token_sha256, d.previous_sha256, d.generation,
       d.previous_until, d.created_at, d.rotated_at, d.retired_at, d.mqtt_hash, d.previous_mqtt_hash,
       s.seen_at
from fleet.device d
left join fleet.device_seen s using (device_id)
where d.device_id = $1::uuid and d.partner_id = $2

-- name: retire_device
-- For ever. Its credentials go with the row's change to every worker.
update fleet.device set retired_at = coalesce(retired_at, $3), previous_sha256 = null, previous_mqtt_hash = null, previous_until = null
where device_id = $1::uuid and partner_id = $2
returning device_id::text

-- name: rotate_device
-- The next generation, if the device is still of generation $3; the credentials of now stay good until $7.
update fleet.device
set previous_sha256 = token_sha256, token_sha256 = $4::bytea, previous_mqtt_hash = mqtt_hash, mqtt_hash = $5,
    generation = generation + 1, previous_until = $7, rotated_at = $6
where device_id = $1::uuid and partner_id = $2 and generation = $3 and retired_at is null
returning device_id::text
